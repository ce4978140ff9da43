"""The counted bytes and operations of the GPU page, and that the page says what the script counts."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.document import replace_section, section
from bench.gpu_calls import step_calls
from bench.gpu_floor import Floor, floors, iteration, report

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"


@pytest.fixture(scope="module")
def rows() -> list[Floor]:
    return floors(step_calls(2, 10))


def find(rows: list[Floor], op: str, shapes: str) -> Floor:
    return next(row for row in rows if row.op == op and row.shapes.startswith(shapes))


def test_the_page_holds_what_the_script_counts() -> None:
    assert section(PAGE.read_text(encoding="utf-8"), "floor") == report()


def test_counts_of_a_convolution(rows: list[Floor]) -> None:
    row = find(rows, "conv3x3", "2x10x16x16x128")
    values = 2 * 10 * 16 * 16 * 128
    assert row.moved == 4 * (2 * values + 2 * (128 * 128 * 9 + 128))  # images in and out, weights, bias
    assert row.flops == 2 * values * 128 * 9
    pair = next(r for r in rows if r.op == "conv3x3" and "2x10x16x16x128" in r.shapes and r.shapes.endswith("pair"))
    assert pair.flops == 2 * row.flops
    assert find(rows, "conv3x3_input_grad", "2x10x16x16x128").flops == row.flops
    assert find(rows, "conv3x3_weight_grad", "2x10x16x16x128").flops == row.flops


def test_counts_of_memory_bound_operators(rows: list[Floor]) -> None:
    values, planes = 2 * 10 * 32 * 32 * 128, 2 * 10 * 128
    assert find(rows, "block_forward", "2x10x32x32x128").moved == 4 * (values + values // 4 + 2 * planes + 2 * 2 * 128)
    assert find(rows, "sgd_step_", "2x320010").moved == 4 * (3 * 2 * 320010 + 2)
    dsa = find(rows, "dsa", "2x10x3x32x32")
    assert dsa.moved == 4 * (2 * 2 * 10 * 3 * 32 * 32 + 2 * 10 * 4) + 8 * 2
    assert dsa.flops == 0


def test_an_iteration_sums_its_steps(rows: list[Floor]) -> None:
    one, kernels = iteration(rows, 1, "tf32x3")
    two, more = iteration(rows, 2, "tf32x3")
    loss = find(rows, "matching_loss", "2x320010")
    assert two - one == pytest.approx(one - loss.seconds("tf32x3"))
    assert more - kernels == kernels - loss.launches
    assert iteration(rows, 1, "tf32")[0] < one


def test_a_section_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end a -->\nafter <!-- b --> <!-- end b -->\n")
    replace_section(str(page), "a", "new")
    assert page.read_text() == "before\n<!-- a -->\nnew\n<!-- end a -->\nafter <!-- b --> <!-- end b -->\n"
    assert section(page.read_text(), "a") == "new"
