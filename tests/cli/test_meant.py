"""Names of checkpoints, and what was probably meant where a name, a folder or an order is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_trainer import Manager, model_tensors
from made_runs import make_run, scores
from watching import STUB, Watcher, cli

from watcher.cli import cli as commands
from watcher.cli.meant import refuse_run_folder
from watcher.errors import ModelDirError

SCORES = json.dumps({"ckpt-1": 0.1, "ckpt-2": 0.6, "ckpt-3": 0.5, "ckpt-4": 0.4})


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Watcher:
    """A run of four checkpoints at steps 100 to 400, ended by patience; the second is the best."""
    watcher = Watcher(tmp_path_factory.mktemp("run"))
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(1, 5):
        manager.save(100 * number, model_tensors(1000, str(number)))
    assert watcher.run("--top-k", 1, "--patience", 2, STUB_SCORES=SCORES) == 0
    return watcher


@pytest.fixture
def folder(ended: Watcher) -> Path:
    return ended.model_dir.parent


@pytest.mark.slow
def test_keep_and_requeue_take_the_names_that_metrics_takes(ended: Watcher):
    (row,) = ended.query("SELECT sha256 FROM history WHERE checkpoint = 'ckpt-3'")
    digest = row["sha256"][:8]
    names = {"best": "ckpt-2", "last": "ckpt-4", "300": "ckpt-3", digest: "ckpt-3"}
    for name, checkpoint in names.items():
        measured = json.loads(cli("metrics", ended.model_dir, name, "--json").stdout)
        assert measured["checkpoint"] == checkpoint
        kept = cli("keep", ended.model_dir, name)
        assert kept.stdout.startswith(f"{checkpoint} (step "), kept.stderr
    let_go = cli("keep", ended.model_dir, *names, "--undo")
    assert let_go.stdout.count("is no longer kept by hand") == 4
    again = cli("keep", ended.model_dir, "best", "--undo")
    assert (again.returncode, again.stdout) == (1, "")
    error, hint = again.stderr.splitlines()
    assert error == "error: ckpt-2 (step 200) is not kept by hand: nothing to undo"
    assert "kept/kept.json lists what is kept" in hint
    anew = cli("requeue", ended.model_dir, "best")
    assert anew.stdout == "ckpt-2 (step 200) waits to be evaluated anew\n"
    start = f"`checkpoint-watcher run {ended.model_dir}`"
    begins = f"no watcher runs now: evaluation begins with the next start of {start}\n"
    assert anew.stderr == begins
    assert cli("requeue", ended.model_dir, "best").stderr == begins, "it waits already"
    assert ended.run(STUB_SCORES=SCORES) == 0


@pytest.mark.parametrize("command", ["keep", "requeue", "metrics"])
@pytest.mark.parametrize(
    ("typed", "meant"),
    [("3", "ckpt-3"), ("ckpt3", "ckpt-3"), ("ckpt_3", "ckpt-3"), ("bets", "best")],
)
def test_a_name_that_is_none_is_answered_with_the_one_that_was_meant(
    ended: Watcher, command: str, typed: str, meant: str
):
    said = cli(command, ended.model_dir, typed)
    assert said.returncode == 1
    assert f"did you mean {meant}?" in said.stderr.splitlines()[0]


@pytest.mark.parametrize("typed", ["1" * 5000, "a" * 60_000, "ckpt\udcff"])
def test_what_can_be_no_name_is_none_of_this_run(ended: Watcher, typed: str):
    said = cli("keep", ended.model_dir, typed)
    assert said.returncode == 1 and "is no checkpoint of this run" in said.stderr


def test_another_number_is_another_checkpoint_and_nothing_is_offered(ended: Watcher):
    for name in ("ckpt-33", "33", "ckpt-0"):
        assert "did you mean" not in cli("keep", ended.model_dir, name).stderr


def test_resume_says_when_there_is_nothing_to_resume(ended: Watcher):
    # Whatever was asked for above, this withdraws the stop that stands.
    cli("resume", ended.model_dir)
    before = ended.query("SELECT count(*) AS n FROM events"), ended.query("SELECT * FROM runs")
    again = cli("resume", ended.model_dir)
    assert again.returncode == 0
    assert again.stdout == "nothing to resume: no early stop of this run stands\n"
    assert before == (
        ended.query("SELECT count(*) AS n FROM events"),
        ended.query("SELECT * FROM runs"),
    )


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("watch", "run"), ("list", "history"), ("check", "doctor"), ("why", "explain")],
)
def test_a_command_of_another_name_is_answered_with_ours(typed: str, meant: str):
    said = cli(typed, "models/ssd")
    assert said.returncode == 2 and f"Did you mean '{meant}'?" in said.stderr


def test_help_as_a_command_is_answered_with_the_flag():
    said = cli("help")
    assert said.returncode == 2
    assert said.stderr.endswith("No such command 'help'. `checkpoint-watcher --help` tells.\n")
    assert cli("help", "run").stderr.endswith(" `checkpoint-watcher run --help` tells.\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("requeue ssd --all ckpt-7", "give only one of checkpoints, --all and --failed"),
        ("requeue ssd --all --failed", "give only one of checkpoints, --all and --failed"),
        ("requeue ssd", "give checkpoints, or --all, or --failed"),
        ("average ssd ckpt-1 ckpt-2 --top 2", "give only one of checkpoints, --top and --last"),
    ],
)
def test_ways_to_choose_that_exclude_each_other_are_told_from_none(words: str, told: str):
    said = cli(*words.split())
    assert said.returncode == 2 and said.stderr.endswith(f"Error: {told}\n"), said.stderr


@pytest.mark.parametrize("command", ["best", "status", "explain", "keep DIR last", "resume"])
def test_a_model_dir_that_is_not_there_is_answered_with_the_one_beside_it(
    ended: Watcher, folder: Path, command: str
):
    for typed in ("model_dri", "model"):
        words = (command if "DIR" in command else f"{command} DIR").replace("DIR", typed).split()
        said = cli(*words, cwd=folder)
        assert said.returncode == 1
        assert said.stderr.endswith(f"hint: did you mean {ended.model_dir}?\n"), said.stderr


def test_a_folder_inside_of_a_run_is_answered_with_the_run(ended: Watcher, folder: Path):
    for inside in ("model_dir/best", "model_dir/watcher/pins"):
        said = cli("best", inside, "--path", cwd=folder)
        assert (said.stdout, said.returncode) == ("", 1)
        assert f"it is a folder of the run in {ended.model_dir}: give that" in said.stderr
    assert cli("best", "model_dir/watcher", cwd=folder).returncode == 0, "the database's own"


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["best", "kept", "best-loss", "watcher", "watcher/pins"])
def test_no_run_is_made_in_a_folder_of_another_one(ended: Watcher, folder: Path, inside: str):
    own = ended.model_dir / inside
    if inside == "best-loss":  # another board's
        shutil.copytree(ended.best_dir, own)
    flags = ("--pipeline-config", "pipeline.config", "--python", STUB)
    trainer = ("--", "python", "train.py", f"--model_dir=model_dir/{inside}")
    for words in (
        ("run", f"model_dir/{inside}", *flags, "--exit-when-idle", 0.2),
        ("doctor", f"model_dir/{inside}", *flags),
        ("train", "--watch", *flags, *trainer),
    ):
        said = cli(*words, cwd=folder)
        assert said.returncode == 1
        assert said.stderr.splitlines()[-2:] == [
            f"error: model_dir (model_dir/{inside}) is not a folder that a trainer saves into",
            f"hint: it is a folder of the run in {ended.model_dir}: give that",
        ]
    assert not (own / "watcher").exists()


def test_a_folder_is_a_run_s_by_what_lies_there_and_not_by_its_name(ended: Watcher, folder: Path):
    (ended.model_dir / "finetuned").mkdir(exist_ok=True)
    copied = folder / "elsewhere" / "best"
    shutil.copytree(ended.best_dir, copied, dirs_exist_ok=True)
    link = folder / "latest"
    link.symlink_to("model_dir/best")
    for path in (ended.model_dir, ended.model_dir / "finetuned", copied, folder / "best"):
        refuse_run_folder(str(path), None)
    refuse_run_folder("gs://bucket/best", str(ended.model_dir / "watcher"))
    with pytest.raises(ModelDirError, match="not a folder that a trainer saves into"):
        refuse_run_folder(str(link), None)


def test_the_folder_of_a_database_that_lies_elsewhere_is_told_with_its_run(tmp_path: Path):
    watched, state = tmp_path / "m", tmp_path / "state"
    make_run(watched, scores(0.1))
    (watched / "watcher").rename(state)
    with pytest.raises(ModelDirError) as refused:
        refuse_run_folder(str(state), None)
    assert refused.value.hint == f"it is a folder of the run in {watched}: give that"
    refuse_run_folder(str(state), str(state))


@pytest.mark.parametrize("words", ["metrics best DIR", "keep last DIR", "compare best last DIR"])
def test_arguments_in_another_order_are_said_to_be(ended: Watcher, folder: Path, words: str):
    said = cli(*words.replace("DIR", "model_dir").split(), cwd=folder)
    command = f"checkpoint-watcher {words.split()[0]} model_dir ..."
    assert said.stderr.endswith(f"hint: MODEL_DIR comes first: `{command}`\n"), said.stderr


@pytest.mark.parametrize("order", ["pipeline.config model_dir", "model_dir pipeline.config"])
def test_a_pipeline_without_its_flag_is_answered_with_the_whole_command(
    ended: Watcher, folder: Path, order: str
):
    said = cli("run", *order.split(), cwd=folder)
    assert said.returncode == 2
    meant = "checkpoint-watcher run model_dir --pipeline-config pipeline.config"
    assert f"Did you mean '{meant}'?" in said.stderr


@pytest.mark.slow
def test_run_and_doctor_name_the_model_dir_that_a_mistyped_one_lies_beside(
    ended: Watcher, folder: Path
):
    flags = ("--pipeline-config", "pipeline.config", "--python", STUB)
    for words in (["run", "modle_dir", *flags], ["run", "modle_dir"], ["doctor", "modle_dir"]):
        said = cli(*words, cwd=folder)
        assert said.returncode == 1
        assert f"hint: did you mean {ended.model_dir}? If not: " in said.stderr
    alone = cli("run", "pipeline.config", cwd=folder)
    assert "`--pipeline-config pipeline.config` gives a file" in alone.stderr


# Each command that is about a run, as it is typed without its MODEL_DIR.
_WITHOUT = {
    "status": [""],
    "best": ["", "--path"],
    "leaderboard": [""],
    "history": [""],
    "metrics": ["", "best", "200", "--json last"],
    "compare": ["ckpt-1 best", "best last --json"],
    "plot": ["", "-o {out}/run.svg"],
    "web": ["--export {out}/run.html"],
    "explain": ["", "--what-if patience=1"],
    "keep": ["best", "last 100", "ckpt-1 --undo"],
    "requeue": ["ckpt-3", "300 ckpt-3", "--failed"],
    "resume": [""],
    "average": ["", "ckpt-1 300", "--top 2 --greedy"],
}
# Tried elsewhere, or about no run: those that take settings, those that write such a file, and
# `rebuild`, which refuses a whole database.
_ELSEWHERE = {"run", "doctor", "train", "init", "install-units", "rebuild", "completion", "agent"}


@pytest.fixture
def desk(ended: Watcher, tmp_path: Path) -> Path:
    """A folder with a settings file for that run in it."""
    (tmp_path / "checkpoint-watcher.toml").write_text(f'model_dir = "{ended.model_dir}"\n')
    return tmp_path


def test_the_table_of_commands_without_model_dir_is_complete():
    assert _WITHOUT.keys() | _ELSEWHERE == set(commands.list_commands(None))


@pytest.mark.parametrize("line", [f"{name} {one}" for name in _WITHOUT for one in _WITHOUT[name]])
def test_every_command_takes_model_dir_from_the_settings_file_here(
    ended: Watcher, desk: Path, line: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(desk)
    said = CliRunner().invoke(commands, line.format(out=desk).split())
    assert said.exit_code == 0, said.output
    assert said.stderr.startswith(f"MODEL_DIR from ./checkpoint-watcher.toml: {ended.model_dir}\n")
    assert said.stderr.count("./checkpoint-watcher.toml") == 1


def test_json_is_printed_or_refused(ended: Watcher):
    run = str(ended.model_dir)
    for words in (["best", run, "--path"], ["average", run, "ckpt-1", "ckpt-3"]):
        said = CliRunner().invoke(commands, [*words, "--json"])
        assert (said.exit_code, said.stdout) == (2, ""), words
        assert "--json" in said.stderr.splitlines()[-1]


def test_a_report_goes_to_standard_output_when_asked(
    ended: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(commands, ["web", str(ended.model_dir), "--export", "-"])
    assert said.exit_code == 0 and said.stdout.startswith("<!doctype html>"), said.output
    assert said.stdout.rstrip().endswith("</html>") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        "metrics A best",
        "explain A",
        "average A",
        "resume A",
        "keep A ckpt-1 --undo",
        "requeue A ckpt-9",
    ],
)
def test_the_one_run_below_a_folder_is_found_by_every_command(ended: Watcher, words: str):
    above, run = str(ended.model_dir.parent), str(ended.model_dir)
    told = [
        CliRunner().invoke(commands, [folder if word == "A" else word for word in words.split()])
        for folder in (run, above, run)
    ][1:]  # the first resumes, and the others have nothing to resume
    assert "no database" not in told[0].stderr
    assert (told[0].exit_code, told[0].output) == (told[1].exit_code, told[1].output)


def test_a_wrong_what_if_is_told_what_is_wrong(ended: Watcher):
    def hint(pair: str) -> str:
        said = cli("explain", ended.model_dir, "--what-if", pair)
        assert said.returncode == 1
        return said.stderr.splitlines()[-1]

    assert hint("patience") == "hint: give it a value: --what-if patience=VALUE"
    assert hint("patienc=3") == "hint: did you mean patience?"
    assert hint("patience=0").startswith("hint: it was set by --what-if patience;")


def test_without_scores_last_is_not_offered_in_place_of_best(tmp_path: Path):
    make_run(tmp_path, [])
    said = cli("compare", tmp_path, "best", "last")
    assert said.returncode == 1 and "error: no checkpoint is evaluated yet" in said.stderr
    assert "`last`" not in said.stderr


@pytest.mark.slow
def test_the_words_move_up_where_the_settings_file_names_model_dir(ended: Watcher, desk: Path):
    for words in (["metrics", "100", "--json"], ["compare", "last", "best", "--json"]):
        here = cli(*words, cwd=desk).stdout
        assert here == cli(words[0], ended.model_dir, *words[1:]).stdout
    kept = cli("keep", "100", "ckpt-4", cwd=desk).stdout
    assert kept == "ckpt-1 (step 100) is kept\nckpt-4 (step 400) is kept\n"
    cli("keep", "100", "ckpt-4", "--undo", cwd=desk)


@pytest.mark.parametrize("words", ["keep best", "requeue last", "compare ckpt-1 last", "metrics 7"])
def test_without_a_settings_file_here_model_dir_is_asked_for(
    tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(commands, words.split(), prog_name="checkpoint-watcher")
    command, *names = words.split()
    meant = " ".join(["checkpoint-watcher", command, "MODEL_DIR", *names])
    assert said.exit_code == 2 and said.stderr.endswith(
        f"Error: no checkpoint-watcher.toml here: name MODEL_DIR first, `{meant}`\n"
    )
    (tmp_path / "checkpoint-watcher.toml").write_text("top_k = 3\n")
    said = CliRunner().invoke(commands, words.split())
    assert "./checkpoint-watcher.toml names no MODEL_DIR: name MODEL_DIR first" in said.stderr


def test_a_name_that_is_none_is_said_to_be_beside_a_settings_file_too(desk: Path):
    for words in (["keep", "bets"], ["compare", "bets", "last"]):
        said = cli(*words, cwd=desk)
        assert said.returncode == 1 and "did you mean best?" in said.stderr


def test_a_folder_named_as_a_checkpoint_is_model_dir_only_with_a_run_in_it(
    ended: Watcher, desk: Path
):
    (desk / "100").mkdir()
    said = cli("metrics", "100", "--json", cwd=desk)
    assert json.loads(said.stdout)["checkpoint"] == "ckpt-1"
    assert "100 is taken for a checkpoint, and not for the folder ./100" in said.stderr
    assert cli("metrics", "./100", cwd=desk).returncode == 1
    (desk / "100" / "watcher").mkdir()
    shutil.copy(ended.database, desk / "100" / "watcher")
    said = cli("metrics", "100", "--json", cwd=desk)
    assert json.loads(said.stdout)["checkpoint"] == "ckpt-2", "the best of that run"
    assert said.stderr == "MODEL_DIR is the folder ./100: there is a run in it\n"


def test_nothing_is_done_here_where_the_first_word_may_be_another_model_dir(
    ended: Watcher, desk: Path
):
    before = ended.query("SELECT state, count(*) FROM history GROUP BY state")
    for words in (["requeue", "exp-3", "last"], ["requeue", "nowhere/exp", "last"]):
        said = cli(*words, cwd=desk)
        assert said.returncode == 1 and f"no database at {desk / words[1]}" in said.stderr
    assert ended.query("SELECT state, count(*) FROM history GROUP BY state") == before


@pytest.mark.parametrize("words", ["status DIR", "keep DIR last"])
def test_before_the_first_run_a_mistyped_folder_is_answered_with_the_one_beside_it(
    tmp_path: Path, words: str
):
    (tmp_path / "model_dir").mkdir()
    said = cli(*words.replace("DIR", "model_dri").split(), cwd=tmp_path)
    near = f"did you mean {tmp_path / 'model_dir'}? There is no run in it yet"
    assert said.returncode == 1 and near in said.stderr
    (tmp_path / "checkpoint-watcher.toml").write_text(f'model_dir = "{tmp_path / "model_dir"}"\n')
    assert near in cli(*words.replace("DIR", "model_dri").split(), cwd=tmp_path).stderr
