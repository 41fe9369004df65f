"""Writes README.md's performance table from the files in benchmarks/results.

python benchmarks/performance_table.py            replaces the table
python benchmarks/performance_table.py --check    fails if it is not what the files say
"""

import readme_table
import results_file

BEGIN = '<!-- performance: made by benchmarks/performance_table.py -->\n'


def table() -> str:
    """The table in Markdown, and a line on the machine; where there are several, rows name them."""
    files = {name: results_file.read(name) for name in ('throughput', 'rendering', 'first_step')}
    throughput, first_step = files['throughput'], files['first_step']
    rows: list[tuple[str, str, str, str]] = []
    machines: list[str] = []

    def rate(values: dict[str, float]) -> str:
        return f'{values["images_per_s"]:,.1f} images/s'

    def add(what: str, value: str, beside: str, file: str, entry: str = '') -> None:
        rows.append((what, value, beside, file))
        machines.append(results_file.machine_of(files[file], files[file].get(entry)))

    for size in (112, 224):
        name = f'train_{size}'
        ours, torch = (throughput.get(entry) for entry in (name, f'{name}_torch'))
        if ours and torch:
            beside = f'{ours["ratio_to_torch"]:.2f} x PyTorch channels_last ({rate(torch)})'
            what = f'training at {size} px, batch {throughput["batch_size"]}'
            add(what, rate(ours), beside, 'throughput', name)
    for what, name, file in (
        ('reading and warping photographs to 224 px', 'input_224', 'throughput'),
        ('rendering hands at 224 px', 'render_224', 'rendering'),
    ):
        add(what, rate(files[file][name]), '', file, name)
    add(
        'from the command to the first training step, 112 px',
        f'{first_step["warm_cache_s"]:.0f} s',
        f'{first_step["cold_cache_s"]:.0f} s with an empty compilation cache',
        'first_step',
    )
    cells = [
        [what + note, value, beside, f'{file}.json']
        for (what, value, beside, file), note in zip(
            rows, results_file.machine_notes(machines), strict=True
        )
    ]
    made = results_file.table('what | measured | beside | file in benchmarks/results', cells)
    where = ', '.join(sorted(set(machines)))
    return f'{made}\n\nMeasured on {where}. No GPU, TPU or phone yet.\n'


if __name__ == '__main__':
    readme_table.run(__doc__, BEGIN, table)
