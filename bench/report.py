"""Makes docs/vos-numbers.md and docs/vos-growth.svg of what bench/report.sh measured: report.py FOLDER DOCS"""

import json
import math
import pathlib
import platform
import subprocess
import sys

folder, docs = map(pathlib.Path, sys.argv[1:])


def rows(name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def figure(value):
    """Three digits that count."""
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}" if value >= 0.001 or value == 0 else f"{value:.0e}"


def table(head, lines):
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for line in lines:
        yield "| " + " | ".join(line) + " |"


UNITS = {"ops_per_cpu_s": "/s of CPU", "ops_per_s": "/s", "us": " µs", "percent": " %"}


def measured(row):
    reached = row.get("reached")
    return [
        f"{row['case']}{' × ' + str(row['depth']) if row['depth'] > 1 else ''}",
        row["media"],
        "yes" if row["durable"] else "no",
        figure(row["value_bytes"]),
        figure(row["ops_per_s"]),
        figure(row["p50_us"]),
        figure(row["cpu_us_per_op"]),
        figure(row.get("allocations_per_op")),
        figure(row.get("metadata_bytes_per_record")),
        f"{row['peer']}: {figure(row['peer_value'])}{UNITS[row['peer_unit']]}",
        f"{row['ratio']:.2f} ×",
        row.get("goal", "–").replace(">=", "≥").replace("<=", "≤"),
        "–" if reached is None else "yes" if reached else "**no**",
    ]


growth = rows("growth")
sizes = sorted({row["records"] for row in growth if row["case"].startswith("kv-")})
cases = list(dict.fromkeys(row["case"] for row in growth))


def cost(case, records):
    # A block for every fourth record, in a power of two.
    blocks = 1 << (records // 4 - 1).bit_length()
    wanted = blocks if case in ("array-update", "array-read") else records
    found = [row["cpu_us_per_op"] for row in growth if row["case"] == case and row["records"] == wanted]
    return found[0] if found else None


def growth_lines():
    for case in cases:
        costs = [cost(case, size) for size in sizes]
        last = next((value for value in reversed(costs) if value), None)
        ratio = last / costs[1] if len(costs) > 2 and costs[1] else None
        yield [case] + [figure(value) for value in costs] + ["–" if ratio is None else f"{ratio:.2f} ×"]


def svg():
    """Cost in µs of CPU time against records, both on logarithmic axes."""
    width, height, left, bottom, top, right = 760, 440, 60, 50, 20, 190
    values = [value for case in cases for size in sizes if (value := cost(case, size))]
    low, high = math.floor(math.log10(min(values)) * 4) / 4, math.ceil(math.log10(max(values)) * 4 + 0.3) / 4

    def x(size):
        span = math.log10(sizes[-1] / sizes[0]) or 1
        return left + (width - left - right) * math.log10(size / sizes[0]) / span

    def y(value):
        return height - bottom - (height - bottom - top) * (math.log10(value) - low) / (high - low)

    # Hue and pattern together tell the lines apart: the hue is the operation, the pattern is what it works on.
    hues = {"update": "#4477aa", "update-existing": "#228833", "fetch": "#cc3311", "fetch-batch": "#aa3377", "read": "#cc3311"}
    hues |= {"nested": "#997700", "staggered": "#228833", "interleaved": "#555555"}
    patterns = {"kv": "", "doc": "7 3", "array": "2 3"}

    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
    yield f'<rect width="{width}" height="{height}" fill="white"/>'
    for size in sizes:
        yield f'<line x1="{x(size):.1f}" y1="{top}" x2="{x(size):.1f}" y2="{height - bottom}" stroke="#ddd"/>'
        yield f'<text x="{x(size):.1f}" y="{height - bottom + 18}" text-anchor="middle">10<tspan dy="-5" font-size="9">{round(math.log10(size))}</tspan></text>'
    for mark in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        if low <= math.log10(mark) <= high:
            yield f'<line x1="{left}" y1="{y(mark):.1f}" x2="{width - right}" y2="{y(mark):.1f}" stroke="#ddd"/>'
            yield f'<text x="{left - 6}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark}</text>'
    yield f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">records</text>'
    yield f'<text transform="translate(16,{(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">µs of CPU time per operation</text>'
    ends = {}
    for case in cases:
        kind, operation = case.split("-", 1)
        points = [(x(size), y(value)) for size in sizes if (value := cost(case, size))]
        colour = hues[operation]
        yield f'<polyline fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{patterns[kind]}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'
        yield from (f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{"white" if kind == "doc" else colour}" stroke="{colour}"/>' for a, b in points)
        ends.setdefault(points[-1][0], []).append((points[-1][1], case, colour))
    # Names beside the ends of their lines, one below the other; over other lines they have a white edge.
    for edge, names in ends.items():
        names.sort()
        at, middle = 0, sum(place for place, _, _ in names) / len(names)
        down = []
        for place, case, colour in names:
            at = max(place + 4, at + 15)
            down.append(at)
        # Where there is a crowd it grows both ways.
        shift = sum(down) / len(down) - middle - 4
        last = top
        for at, (place, case, colour) in zip(down, names):
            last = max(min(at, max(at - shift, last + 15)), top + 4)
            yield f'<line x1="{edge + 4:.1f}" y1="{place:.1f}" x2="{edge + 20:.1f}" y2="{last - 4:.1f}" stroke="{colour}" stroke-width="0.7"/>'
            yield f'<text x="{edge + 23:.1f}" y="{last:.1f}" fill="{colour}" stroke="white" stroke-width="4" paint-order="stroke">{case}</text>'
    yield f'<text x="{left + 8}" y="{top + 12}" font-size="10" fill="#555">solid: KV, dashed: document, dotted: array</text>'
    yield "</svg>"


def processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


date = subprocess.run(["git", "log", "-1", "--format=%cs"], capture_output=True, text=True, check=True).stdout.strip()
text = [
    "# What the store costs",
    "",
    f"Made by `bench/report.sh` of the tree of {date}, on {processor()}. Do not edit; what is missed, and why, is in",
    "[roadmap.md](roadmap.md) and [bench/README.md](../bench/README.md).",
    "",
    "## Goals and peers",
    "",
    "`kv` and `doc`: 16-byte keys, a document has one akey per dkey. `cpu` is the CPU time of an operation in µs, `allocations` those of an",
    "operation, `metadata` the bytes of a record (an extent, for arrays) beyond key and value. Figures of the original VOS are from before: it",
    "cannot run here.",
    "",
    # What whoever measured has to say of the machine.
    *((folder / "note").read_text().splitlines() + [""] if (folder / "note").exists() else []),
    *table(
        ["case", "media", "durable", "bytes", "per s", "p50 µs", "cpu µs", "allocations", "metadata", "peer", "ratio", "goal", "reached"],
        map(measured, rows("rows")),
    ),
    "",
    "fio with io_uring on a file of the same disk, before or after (`block-write`: 1 MiB, 8 in flight, each with a data sync; `block-read`: 4 KiB, 32 in flight):",
    "",
    *(f"* {line}" for line in (folder / "fio").read_text().splitlines()),
    "",
    "## Growth",
    "",
    "µs of CPU time per operation on heap media, against the number of records (`array-update`, `array-read`: a block of 4 KiB for every fourth;",
    "`array-nested`, `-staggered`, `-interleaved`: reads of one byte at any epoch of that many extents, which lie in each other, half over each",
    "other, or are single bytes in no order). The goal: at 10^7 at most 2 × what it is at 10^5 (the last column: the largest number measured",
    "over 10^5).",
    "",
    *table(["case", *(f"10^{round(math.log10(size))}" for size in sizes), "growth"], growth_lines()),
    "",
    "![cost against records](vos-growth.svg)",
    "",
    "## Instructions and system calls",
    "",
    "Per operation, on heap media with 20,000 records: the difference of two runs of which one does the operation once more for every record",
    "(`vos/examples/operations.rs` under callgrind and strace).",
    "",
    *table(
        ["case", "instructions", "system calls"],
        ([row["case"], figure(row["instructions_per_op"]), figure(max(row["system_calls_per_op"], 0))] for row in rows("counts")),
    ),
    "",
]
(docs / "vos-numbers.md").write_text("\n".join(text))
(docs / "vos-growth.svg").write_text("\n".join(svg()) + "\n")
