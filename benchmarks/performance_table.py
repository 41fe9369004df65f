"""Writes README.md's performance table from the files in benchmarks/results.

python benchmarks/performance_table.py            replaces the table
python benchmarks/performance_table.py --check    fails if it is not what the files say
"""

import readme_table
import results_file

BEGIN = '<!-- performance: made by benchmarks/performance_table.py -->\n'


def table() -> str:
    """The table in Markdown, and a line on the machines it was measured on."""
    names = ('throughput', 'rendering', 'first_step')
    throughput, rendering, first_step = (results_file.read(name) for name in names)
    rows = []

    def rate(values: dict[str, float]) -> str:
        return f'{values["images_per_s"]:,.1f} images/s'

    for size in (112, 224):
        ours, torch = (throughput.get(name) for name in (f'train_{size}', f'train_{size}_torch'))
        if not (ours and torch):
            continue
        rows.append(
            (
                f'training at {size} px, batch {throughput["batch_size"]}',
                rate(ours),
                f'{ours["ratio_to_torch"]:.2f} x PyTorch channels_last ({rate(torch)})',
                'throughput',
            )
        )
    for what, name, file, result in (
        ('reading and warping photographs to 224 px', 'input_224', 'throughput', throughput),
        ('rendering hands at 224 px', 'render_224', 'rendering', rendering),
    ):
        rows.append((what, rate(result[name]), '', file))
    rows.append(
        (
            'from the command to the first training step, 112 px',
            f'{first_step["warm_cache_s"]:.0f} s',
            f'{first_step["cold_cache_s"]:.0f} s with an empty compilation cache',
            'first_step',
        )
    )
    lines = ['| what | measured | beside | file in benchmarks/results |', '|---|---|---|---|']
    lines += [
        f'| {what} | {value} | {beside} | {file}.json |' for what, value, beside, file in rows
    ]
    machines = sorted(map(results_file.machine_of, (throughput, rendering, first_step)))
    machines = list(dict.fromkeys(machines))
    return '\n'.join(lines) + f'\n\nMeasured on {", ".join(machines)}. No GPU, TPU or phone yet.\n'


if __name__ == '__main__':
    readme_table.run(__doc__, BEGIN, table)
