"""Draws README's picture of `npu-smi top`: a real screen, with real clients, as SVG.

    PYTHONPATH=tools/python NPU_TOOL=target/release/npu python tests/smi/picture.py > docs/img/npu-smi-top.svg
"""

import html
import re
import time

from conftest import Server, program
from tmux import Terminal

COLUMNS, ROWS = 100, 30
CELL = (8.4, 18)
COLORS = {"31": "#f85149", "32": "#3fb950", "33": "#d29922", "36": "#39c5cf"}
PAPER, INK = "#0d1117", "#c9d1d9"
# The name of SVG's vocabulary, which a picture states; nothing is fetched by it.
NAMESPACE = "http://www.w3.org/2000/svg"


def spans(line: str):
    """The line in pieces of one style: text, ink, whether reversed, bold, dim."""
    ink, flags = INK, set()
    for codes, text in re.findall(r"(?:\x1b\[([0-9;]*)m)?([^\x1b]*)", line):
        # One of the first eight of 256 colours is that of the terminal.
        for code in re.sub(r"38;5;([0-7])\b", r"3\1", codes).split(";") if codes else []:
            if code in ("", "0"):
                ink, flags = INK, set()
            elif code in ("1", "2", "7"):
                flags = flags | {code}
            elif code == "39":
                ink = INK
            else:
                ink = COLORS.get(code, ink)
        if text:
            yield text, ink, frozenset(flags)


def svg(screen: str) -> str:
    width, height = CELL[0] * COLUMNS + 20, CELL[1] * ROWS + 20
    out = [f'<svg xmlns="{NAMESPACE}" viewBox="0 0 {width:g} {height:g}" font-family="ui-monospace,Menlo,Consolas,monospace" font-size="14">']
    out.append(f'<rect width="100%" height="100%" rx="6" fill="{PAPER}"/>')
    for row, line in enumerate(screen.splitlines()):
        at, top = 0, 10 + CELL[1] * row
        for text, ink, flags in spans(line):
            left, wide = 10 + CELL[0] * at, CELL[0] * len(text)
            if "7" in flags:
                out.append(f'<rect x="{left:g}" y="{top:g}" width="{wide:g}" height="{CELL[1]}" fill="{ink}"/>')
                ink = PAPER
            # Bars are drawn: fonts leave gaps between them.
            for place, bar in enumerate(text):
                if "▁" <= bar <= "█":
                    high = CELL[1] * (ord(bar) - ord("▁") + 1) / 8
                    out.append(f'<rect x="{left + CELL[0] * place:g}" y="{top + CELL[1] - high:g}" width="{CELL[0] - 0.6:g}" height="{high:g}" fill="{ink}"/>')
            for word in re.finditer(r"[^ ▁-█]+(?: [^ ▁-█]+)*", text):
                style = ' font-weight="bold"' if "1" in flags else ' opacity="0.6"' if "2" in flags else ""
                begin, wide = left + CELL[0] * word.start(), CELL[0] * len(word[0])
                out.append(f'<text x="{begin:g}" y="{top + 13.5:g}" textLength="{wide:g}" fill="{ink}"{style}>{html.escape(word[0])}</text>')
            at += len(text)
    return "\n".join([*out, "</svg>"])


def main() -> None:
    with Server() as server:
        server.work()
        command = [program("npu-smi"), "--socket", "npu.manage", "top", "--every", "0.1"]
        with Terminal(COLUMNS, ROWS, *command, cwd=server.folder) as terminal:
            terminal.until("JOBS/s")
            # Clients that come and go, so that there is something to see.
            for _ in range(3):
                time.sleep(1.2)
                second = server.work()
                time.sleep(1.2)
                second.kill()
            server.work()
            time.sleep(1.5)
            print(svg(terminal.tmux("capture-pane", "-p", "-e")))


main()
