"""utils/processes.py：由环境变量知道自己是第几个进程。"""

import pytest

from utils import processes

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RESTART_COUNT": "2",
}


def set_environment(monkeypatch, values: dict) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_program_started_by_python_is_the_only_process(monkeypatch):
    set_environment(monkeypatch, {})
    assert (processes.rank(), processes.world_size(), processes.local_rank()) == (0, 1, 0)
    assert processes.is_main() and not processes.spans_machines() and not processes.is_launched()


def test_torchrun_says_which_process_this_is(monkeypatch):
    set_environment(monkeypatch, TORCHRUN)
    assert (processes.rank(), processes.world_size(), processes.local_rank()) == (5, 8, 1)
    assert not processes.is_main() and processes.spans_machines() and processes.num_on_this_machine() == 4
    assert processes.name().startswith("进程 5（")


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_left_over_variables_do_not_count(monkeypatch, missing):
    """别的程序也用 WORLD_SIZE 这样的名字；缺一个就不是 torchrun。"""
    set_environment(monkeypatch, {name: value for name, value in TORCHRUN.items() if name != missing})
    assert processes.world_size() == 1 and processes.is_main()


def test_work_of_the_main_process_is_skipped_by_the_others(monkeypatch):
    work = processes.on_main(lambda number: number + 1)
    set_environment(monkeypatch, {})
    assert work(1) == 2
    set_environment(monkeypatch, TORCHRUN)
    assert work(1) is None
