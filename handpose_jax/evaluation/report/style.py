"""How the page looks: the style sheet of report.html."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.2rem 1.2rem 4rem; background: #fff;
  color: #222; font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: .4rem 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem;
  border-bottom: 2px solid #0072b2; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }
p, dd { max-width: 78ch; overflow-wrap: anywhere; }
.quiet { color: #555; font-size: .875rem; }
header .quiet { margin: 0; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1rem 0 0; }
a { color: #005a8d; }
.command { display: block; margin: .25rem 0; padding: .45rem .6rem; background: #f3f4f5;
  border-radius: 4px; font-size: .82rem; white-space: pre; overflow-x: auto; }
.plain { list-style: none; padding: 0; }
.notice { padding: .5rem .8rem; background: #fdf4e3; border-left: 4px solid #e69f00; }
.wide { overflow-x: auto; margin: .6rem 0; background:
  linear-gradient(90deg, #fff 30%, #fff0) 0 / 2rem 100% local no-repeat,
  linear-gradient(270deg, #fff 30%, #fff0) 100% / 2rem 100% local no-repeat,
  linear-gradient(90deg, #0003, #0000) 0 / .5rem 100% scroll no-repeat,
  linear-gradient(270deg, #0003, #0000) 100% / .5rem 100% scroll no-repeat; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th[scope=row], th:first-child { text-align: left; font-weight: 400; padding-left: 0; }
thead th { border-bottom: 2px solid #999; vertical-align: bottom; }
th, td { overflow-wrap: break-word; max-width: 16rem; }
.range { color: #555; font-size: .8rem; white-space: nowrap; }
.figures { display: grid; gap: 1rem 1.4rem; margin: .6rem 0 1.6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.beside { display: grid; gap: 1rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), auto)); }
ul { max-width: 78ch; }
figure { margin: 0; break-inside: avoid; min-width: 0; max-width: 460px; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: #555; font-size: .82rem; overflow-wrap: anywhere; }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(46%, 210px), 1fr)); }
.card img, .absent { border-radius: 4px; }
.absent { aspect-ratio: 1; display: grid; place-items: center; background: #eee; color: #666; }
.card figcaption { padding-top: .3rem; color: #222; }
.card .id, .card .quiet { display: block; font-size: .78rem; }
.tag { display: inline-block; padding: 0 .45rem; border-radius: 9px; background: #d55e00;
  color: #fff; font-size: .75rem; font-weight: 600; }
.tag.none { background: #e4e4e4; color: #333; }
summary { cursor: pointer; margin: .8rem 0 .2rem; }
dt { font-weight: 600; }
dd { margin: 0 0 .6rem; }
@media (max-width: 600px) {
  body { padding: .7rem .8rem 3rem; font-size: 15px; }
  table { font-size: .82rem; }
  th, td { padding: .3rem .35rem; }
  th:first-child { max-width: 7.5rem; }
  .range { display: block; font-size: .74rem; }
}
@media print {
  body { max-width: none; font-size: 10.5pt; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  tr, .card { break-inside: avoid; }
  .wide { overflow: visible; }
  .command { white-space: pre-wrap; }
  .tag { border: 1px solid #333; color: #000; background: none; }
}
"""
