"""Errors of a command end in one sentence, and faults of the program keep their stack trace."""

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset

from tests.conftest import let_go
from vtm.cli.errors import concise_errors, naming, one_sentence
from vtm.cli.overrides import near_misses
from vtm.merging.partition import num_targets
from vtm.video.scanning import duration


def caught(mistake: Callable[[], object]) -> BaseException:
    try:
        mistake()
    except Exception as error:
        let_go(error)
        return error
    raise AssertionError("expected an error")


class Videos(Dataset):
    def __init__(self, mistake: Callable[[], object]) -> None:
        self.mistake = mistake

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        self.mistake()
        return index


def refuse() -> None:
    num_targets(5, 0)


def fail() -> None:
    _ = 1 / 0


SENTENCE = "expected partition_factor to be an integer >= 1, got 0"


def test_what_vtm_refuses_leaves_with_its_sentence():
    with pytest.raises(SystemExit, match=SENTENCE), concise_errors():
        refuse()


@pytest.mark.parametrize("num_workers", [0, 1], ids=["here", "in a loading process"])
def test_a_file_that_is_no_video_is_one_sentence(tmp_path, num_workers):
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    loader = DataLoader(Videos(partial(duration, tmp_path / "a.mp4")), num_workers=num_workers)
    with pytest.raises(SystemExit) as stop, concise_errors():
        list(loader)
    let_go(stop.value)
    assert str(stop.value.code).startswith(f"{tmp_path / 'a.mp4'}: cannot be read as a video (")
    assert "\n" not in str(stop.value.code)


def test_hydra_full_error_shows_the_stack_trace(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match=SENTENCE), concise_errors():
        refuse()


@pytest.mark.parametrize(
    ("mistake", "error"),
    [(lambda: near_misses(None, None, "train"), TypeError), (fail, ZeroDivisionError)],
    ids=["in vtm", "elsewhere"],
)
def test_mistakes_of_the_program_keep_their_stack_trace(mistake, error):
    with pytest.raises(error), concise_errors():
        mistake()


def test_an_interruption_has_the_status_of_one(capsys):
    with pytest.raises(SystemExit) as stop, concise_errors():
        raise KeyboardInterrupt
    assert (stop.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_sigterm_unwinds_a_command_and_gives_its_status():
    unwound = []

    def command() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            unwound.append(True)

    with pytest.raises(SystemExit) as stop, concise_errors():
        command()
    assert (stop.value.code, unwound) == (143, [True])
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_is_left_to_who_handles_it_already():
    heard = []
    with concise_errors():
        ours = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *given: (heard.append(True), ours(*given)))  # as Lightning wraps ours
        os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    try:
        with concise_errors():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert heard == [True] * 3


def test_a_closed_pipe_ends_a_command_quietly():
    code = (
        "from vtm.cli.errors import concise_errors; from vtm.system.progress import Progress\n"
        "with concise_errors(), Progress('predict', 1) as progress: progress.print('an answer')"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 141
    assert "Traceback" not in error


def test_warnings_of_vtm_are_a_sentence_and_those_of_libraries_say_where(capsys):
    usual = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *given: print(warnings.formatwarning(*given[:4]), end="")  # pytest has another
        with concise_errors():
            warnings.warn_explicit("two videos are one", UserWarning, one_sentence.__code__.co_filename, 61)
            warnings.warn_explicit("old", UserWarning, "library.py", 7)
    assert capsys.readouterr().out == "warning: two videos are one\nlibrary.py:7: UserWarning: old\n"
    assert warnings.formatwarning is usual


@pytest.mark.parametrize(("mistake", "said"), [(refuse, SENTENCE), (fail, None)])
def test_a_loading_process_is_no_reason_for_its_stack_trace(mistake, said):
    assert one_sentence(caught(lambda: list(DataLoader(Videos(mistake), num_workers=1)))) == said


def test_a_loading_process_that_was_killed_says_why_that_may_be():
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert one_sentence(killed) == (
        "DataLoader worker (pid 7) is killed by signal: Killed; the usual cause is too little memory: lower "
        "data.num_workers"
    )
    dead = RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly")
    assert "lower data.num_workers" in one_sentence(dead)


def test_too_little_memory_says_how_much_was_asked_for_and_what_takes_less():
    gpu = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of")
    cpu = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes.")
    for error, asked in ((gpu, "2.50 GiB"), (cpu, "4000 bytes")):
        assert one_sentence(error) == (
            f"out of memory while allocating {asked}: lower data.batch_size and raise "
            "trainer.accumulate_grad_batches by the same factor, set trainer.precision=bf16-mixed, or raise "
            "merging.partition_factor"
        )
    assert one_sentence(torch.cuda.OutOfMemoryError("full")).startswith("out of memory: lower data.batch_size")


def test_files_are_named(tmp_path):
    assert one_sentence(caught((tmp_path / "none").read_text)) == f"{tmp_path / 'none'}: No such file or directory"
    assert one_sentence(caught(tmp_path.read_text)) == f"{tmp_path}: Is a directory"


def test_what_hydra_wraps_is_unwrapped():
    ours = OmegaConf.create({"task": {"_target_": "vtm.tasks.regression.Regression", "num_outputs": 2, "fusion": None}})
    assert one_sentence(caught(lambda: instantiate(ours.task))).startswith("task=regression: expected data with one ")
    theirs = OmegaConf.create({"scaler": {"_target_": "torch.nn.Linear", "in_features": 2, "out": 3}})
    assert one_sentence(caught(lambda: instantiate(theirs.scaler))).startswith("scaler: Linear.__init__() got an unexp")
    wrong = OmegaConf.create({"wrong": {"_target_": f"{__name__}.fail"}})
    sys.modules[__name__].fail = fail
    assert one_sentence(caught(lambda: instantiate(wrong.wrong))) is None


def test_a_value_that_must_be_given_is_named():
    config = OmegaConf.create({"data": {"task": "???"}})
    assert one_sentence(caught(lambda: config.data.task)).startswith("data.task has no value: add data.task=…, or")


def test_a_loading_process_that_was_ended_says_no_more_than_that():
    ended = RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")
    assert one_sentence(ended) == "terminated by SIGTERM"


def test_a_missing_file_is_compared_with_those_that_exist(tmp_path):
    (tmp_path / "Videos.csv").touch()
    with pytest.raises(FileNotFoundError) as error:
        (tmp_path / "videos.csv").open()
    says = f"No such file or directory; {tmp_path}/Videos.csv exists, but 'v' in the given path is 'V' in the file name"
    assert says in one_sentence(error.value)


def test_a_setting_that_a_library_refuses_is_named():
    with pytest.raises(ValueError, match=r"^optimizer: Invalid learning rate: -1$"), naming("optimizer"):
        torch.optim.AdamW([torch.zeros(1)], lr=-1)
    with pytest.raises(ValueError, match=f"^{SENTENCE}$"), naming("scheduler"):
        refuse()
    with pytest.raises(ZeroDivisionError), naming("optimizer"):
        fail()


def test_a_target_that_does_not_exist_is_named():
    config = OmegaConf.create({"optimizer": {"_target_": "torch.optim.SGDD"}})
    said = one_sentence(caught(lambda: instantiate(config.optimizer)))
    assert said.startswith("optimizer: ")
    assert "torch.optim.SGDD" in said
    assert "\n" not in said


def test_what_lightning_refuses_on_purpose_is_its_sentence():
    assert one_sentence(caught(lambda: EarlyStopping(monitor="x", mode="up"))).startswith("`mode` can be min, max, got")
    stop = EarlyStopping(monitor="x")
    error = caught(lambda: stop._validate_condition_metric({"loss": torch.zeros(1)}))
    assert one_sentence(error).startswith("Early stopping conditioned on metric `x` which is not available.")
