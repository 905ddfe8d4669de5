"""What a training script says at its end, and that a finished run is left as it is: config.json says what was run."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path

import pytest

from taosr1.data.judgements import write_judgements
from taosr1.synthetic.shop import read_pool
from train.dpo import main as dpo
from train.grpo import main as grpo
from train.sft import main as sft

MAINS = {"sft": sft, "dpo": dpo, "grpo": grpo}
SMALL = ["--dev", "synthetic:dev*6", "--steps", "2", "--eval-every", "1"]


@pytest.fixture
def command(base, post, pairs):
    """command(stage, out): a run of two steps."""
    of_stage = {
        "sft": ["--model", base, "--order", "post-cot", "--data", "synthetic:reasoned*12", "--batch-size", "4"],
        "dpo": ["--model", post, "--data", pairs, "--batch-size", "4"],
        "grpo": ["--model", post, "--data", "synthetic:labelled*12", "--groups", "3", "--samples", "2",
                 "--test", "synthetic:test*6"],
    }  # fmt: skip
    return lambda stage, out: (MAINS[stage], [*of_stage[stage], *SMALL, "--out", str(out)])


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def state_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with what it holds and when it was written."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "samples.jsonl")]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths if path.name != "metrics.jsonl"}


@pytest.mark.parametrize("stage", MAINS)
def test_a_run_ends_with_its_best_score_its_folder_and_the_next_command_and_again_when_it_is_repeated(
    command, tmp_path, capsys, stage
):
    main, argv = command(stage, tmp_path / "run")
    first = main(argv)
    closing = capsys.readouterr().out.splitlines()
    closing = closing[next(n for n, line in enumerate(closing) if "finished at step 2" in line) :]
    best = json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text(encoding="utf-8"))
    assert closing[0] == f"{stage} post-cot: finished at step 2; run folder {tmp_path / 'run'}"
    assert closing[1].startswith("trained: all weights, ") and argv[argv.index("--data") + 1] in closing[1]
    score = f"best dev macro-F1: {100 * best['dev_macro_f1']:.1f} at step {best['step']}; "
    assert closing[2] == f"{score}--model {tmp_path / 'run'} loads that checkpoint"
    assert closing[3].startswith("next: python ") and closing[-1].startswith("next: python infer/evaluate.py --model ")
    before = state_of(tmp_path / "run")
    again = main(argv)
    repeated = capsys.readouterr().out.splitlines()
    assert repeated[-len(closing) :] == [closing[0].replace(": finished", ": already finished"), *closing[1:]]
    assert state_of(tmp_path / "run") == before
    assert {name: value for name, value in first.items() if name.startswith("test_")} == again


@pytest.mark.parametrize(
    "more",
    [
        ["--steps", "1"],
        ["--lr", "0.5", "--accept-changed", "lr"],
        ["--steps", "1", "--seed", "7", "--accept-changed", "seed,data,dev"],
        ["--data", "synthetic:reasoned*10", "--accept-changed", "data"],
        ["--micro-batch-tok", "99", "--keep-last", "1"],
    ],
)
def test_settings_that_never_ran_are_not_written_down(command, tmp_path, capsys, more):
    main, argv = command("sft", tmp_path / "run")
    main(argv)
    before = {name: content for name, (content, _) in state_of(tmp_path / "run").items()}
    capsys.readouterr()
    main([*argv, *more])
    said = capsys.readouterr()
    assert "already finished at step 2" in said.out and "accepted:" not in said.err
    after = {name: content for name, (content, _) in state_of(tmp_path / "run").items()}
    kept = [name for name in before if "step-000001" not in name]  # --keep-last 1
    assert [after[name] for name in kept] == [before[name] for name in kept]
    assert after.keys() <= before.keys() and config_of(tmp_path / "run")["steps"] == 2


def test_more_steps_continue_and_history_says_from_where_which_settings_ran(command, tmp_path, capsys):
    main, argv = command("sft", tmp_path / "run")
    main(argv)
    main([*argv, "--steps", "3", "--lr", "0.5", "--accept-changed", "lr"])
    assert "accepted: lr was 0.003 and is now 0.5" in capsys.readouterr().err
    main([*argv, "--steps", "4", "--lr", "0.5"])
    main([*argv, "--steps", "4", "--lr", "0.5"])
    main([*argv, "--steps", "2", "--lr", "0.5"])
    stored, history = config_of(tmp_path / "run"), (tmp_path / "run" / "history.json").read_text(encoding="utf-8")
    segments = json.loads(history)["segments"]
    shown = [(part["from_step"], part["settings"]["steps"], part["settings"]["lr"]) for part in segments]
    assert shown == [(0, 2, 0.003), (2, 3, 0.5), (3, 4, 0.5)]
    assert stored == segments[-1]["settings"] and stored["steps"] == 4


def test_a_run_without_dev_rows_is_finished_at_its_last_step_and_names_no_rows_of_the_shop(
    post, pairs, tmp_path, capsys, monkeypatch
):
    own = tmp_path / "own pairs.jsonl"
    own.write_bytes(Path(pairs).read_bytes())  # without its counts file nobody knows what they were mined from
    argv = ["--model", post, "--data", str(own), "--batch-size", "4", "--steps", "1", "--out", str(tmp_path / "run")]
    dpo(argv)
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("next: ")]
    assert "dpo post-cot: finished at step 1; " in said
    assert [words_of(line)[0] for line in lines] == ["train.grpo", "infer.evaluate"]
    assert all("--data GRADED_ROWS" in line and "synthetic:" not in line for line in lines)
    assert f"never evaluated on dev rows: --model {tmp_path / 'run'} loads the newest checkpoint" in said
    monkeypatch.setattr("train.dpo.with_reference", lambda *_: pytest.fail("measured again"))
    dpo(argv)
    assert "dpo post-cot: already finished at step 1; " in capsys.readouterr().out


def test_fewer_steps_than_a_stopped_run_has_done_do_not_finish_it(command, tmp_path, capsys, stopped_after):
    main, argv = command("sft", tmp_path / "run")
    argv += ["--steps", "4"]
    stopped_after(2, main, argv)
    capsys.readouterr()
    main([*argv, "--steps", "1"])
    assert "sft post-cot: stopped at step 2, and --steps 1 leaves none to train; run folder" in capsys.readouterr().out
    assert config_of(tmp_path / "run")["steps"] == 4
    main(argv)
    assert "sft post-cot: finished at step 4; run folder" in capsys.readouterr().out


def words_of(line: str) -> tuple[str, list[str]]:
    _, script, *argv = shlex.split(line.removeprefix("next: "))
    return script.removesuffix(".py").replace("/", "."), argv


@pytest.mark.parametrize("order", ["pre-cot", "post-cot", "label"])
def test_the_commands_that_are_named_run_on_the_files_of_the_user(base, tmp_path, capsys, monkeypatch, order):
    """Paths with spaces, columns of other names and a split: what reads the files once reads them again."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my shop's files"
    folder.mkdir()
    for name, pool in (("train rows", "reasoned"), ("dev", "dev")):
        write_judgements(folder / f"{name}.jsonl", read_pool(pool, 9))
    own = ["--data", str(folder / "train rows.jsonl"), "--dev", str(folder / "dev.jsonl"), "--max-bad-rows", "2"]
    sft(["--model", base, "--order", order, *own, "--steps", "1", "--batch-size", "4", "--out", "runs/mine-sft",
         "--max-new-tokens", "3"])  # fmt: skip
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    names = [words_of(line)[0] for line in lines]
    first = {"pre-cot": ["train.grpo"], "post-cot": ["train.mine_pairs"], "label": []}[order]
    assert names == [*first, "infer.evaluate"]
    small = {"train.grpo": ["--steps", "1", "--groups", "2", "--samples", "2", "--max-new-tokens", "3"],
             "train.mine_pairs": ["--prompts", "4", "--samples", "2", "--balance", "none"],
             "infer.evaluate": ["--bootstrap", "0", "--max-new-tokens", "3"]}  # fmt: skip
    for line in lines:
        name, argv = words_of(line)
        assert argv[argv.index("--max-bad-rows") + 1] == "2" and str(folder) in " ".join(argv)
        try:
            importlib.import_module(name).main([*argv, *small[name]])
        except ValueError as error:
            assert "no preference pairs" in str(error)  # a judge that never learned anything is never right


def test_the_next_command_of_the_embedded_shop_needs_no_rows_of_its_own(thinker, tmp_path, capsys):
    grpo(["--model", thinker, "--data", "synthetic:labelled*8", "--groups", "2", "--samples", "2", "--steps", "1",
          "--dev", "synthetic:dev*4", "--test", "", "--out", str(tmp_path / "shop-grpo")])  # fmt: skip
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    out = tmp_path / "shop-grpo"
    assert lines == [
        f"next: python train/label_pool.py --model {out} --out {tmp_path / 'shop-pool.jsonl'}",
        f"next: python infer/evaluate.py --model {out}",
    ]


@pytest.mark.parametrize("order", ["pre-cot", "label"])
def test_without_dev_rows_of_their_own_the_next_stage_sets_the_same_ones_aside(base, tmp_path, capsys, order):
    data = tmp_path / "rows.jsonl"
    write_judgements(data, read_pool("reasoned", 30))
    sft(["--model", base, "--order", order, "--data", str(data), "--steps", "1", "--batch-size", "4", "--seed", "5",
         "--max-new-tokens", "3", "--out", str(tmp_path / "mine")])  # fmt: skip
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    rows, out = f"--data {data}", tmp_path / "mine"
    assert lines == {
        "pre-cot": [f"next: python train/grpo.py --model {out} --out {out}-grpo {rows} --seed 5",
                    f"next: python infer/explain.py --model {out} {rows}"],
        "label": [f"next: python infer/score.py --model {out} --out {out}-scored.jsonl {rows}"],
    }[order]  # fmt: skip
