"""Without Ray or anything else running: `pytest`."""

from pathlib import Path

from my_pipeline import MyPipeline

from jos.testing import run_worker

EXAMPLES = Path(__file__).parent / "pipelines" / "my-pipeline" / "examples"


def test_each_row_has_its_mean_and_its_largest_and_a_bad_row_is_named() -> None:
    outputs = run_worker(MyPipeline, [EXAMPLES / "rows.csv"], config={"digits": 1})
    assert outputs.files == {"inp_rows_rows.csv": b"row,mean,largest\n0,2.0,3.0\n1,,\n2,0.5,4.5\n"}
    assert outputs.failures == {"rows.csv": {1: "rows.csv line 2: numbers separated by commas are expected"}}


def test_long_files_are_cut_and_no_row_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    file.write_text("".join(f"{row},{row + 2}\n" for row in range(2500)))
    outputs = run_worker(MyPipeline, [file], config={"digits": 0})
    lines = outputs.files["inp_long_rows.csv"].decode().splitlines()
    assert lines[1:] == [f"{row},{row + 1},{row + 2}" for row in range(2500)]
