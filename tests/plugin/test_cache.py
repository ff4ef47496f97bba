"""The cache on a disk: a second session compiles nothing, whoever made the first; damage is told and mended."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import graphs
import processes
import sessions
from test_context import stages_of

SESSION = """
model = graphs.quantised().SerializeToString()
session = sessions.by_name(model, {"cache_dir": sys.argv[1]})
sessions.assert_same(session, sessions.cpu(model), graphs.sample(2), "cached")
print("done")
"""


def kept(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.fixture
def model() -> bytes:
    return graphs.quantised().SerializeToString()


def test_a_second_session_compiles_nothing_and_gives_the_same_bytes(tmp_path, capfd, model):
    folder, reference = tmp_path / "cache", sessions.cpu(model)
    settings = {"cache_dir": str(folder)}
    first, (stages,) = stages_of(capfd, lambda: sessions.by_name(model, settings))
    assert stages[0] > 0 and stages[1:] == (0, 1)
    (file,) = kept(folder)
    for door, make in sessions.DOORS.items():
        session, (stages,) = stages_of(capfd, lambda make=make: make(model, settings, 1))
        assert stages == (0, 1, 1), "a stage of the compiler ran"
        for batch in (1, 3):
            sessions.assert_same(session, reference, graphs.sample(batch), f"{door}, batch {batch}")
    assert kept(folder) == [file]
    # Another device, other batches, another model: other parts.
    sessions.by_name(model, settings | {"batches": "1,2"})
    sessions.by_name(model, settings | {"device": "sim:macs=256"})
    sessions.by_name(graphs.quantised(per_channel=False).SerializeToString(), settings)
    assert len(kept(folder)) == 4


def test_a_model_of_several_parts_and_one_moved_elsewhere(tmp_path, capfd):
    content = graphs.quantised("LogSoftmax", "LogSoftmax").SerializeToString()
    settings = {"cache_dir": str(tmp_path / "cache")}
    counts = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        session, (stages,) = stages_of(capfd, lambda path=path: sessions.by_name(str(path), settings))
        sessions.assert_same(session, sessions.cpu(content), graphs.sample(2), name)
        counts.append(stages)
    assert counts[0][1] == 0 and counts[0][2] > 1
    assert counts[1] == (0, counts[0][2], counts[0][2]), "the path of the model counted"


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "nonsense"])
def test_a_damaged_file_is_told_deleted_and_made_again(tmp_path, capfd, model, damage):
    folder = tmp_path / "cache"
    settings = {"cache_dir": str(folder)}
    sessions.by_name(model, settings)
    (file,) = kept(folder)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    file.write_bytes({"bit": bytes(flipped), "cut": whole[:-1], "empty": b"", "nonsense": b"x" * 100}[damage])
    capfd.readouterr()
    session = sessions.by_name(model, settings)
    log = capfd.readouterr().err
    assert re.search("NPU cache: .*deleted and compiled again", log), log
    assert file.read_bytes() == whole
    sessions.assert_same(session, sessions.cpu(model), graphs.sample(2), "mended")


def test_a_part_of_another_model_under_this_ones_name_is_not_run(tmp_path, capfd, model):
    folder, other = tmp_path / "cache", graphs.quantised(per_channel=False).SerializeToString()
    settings = {"cache_dir": str(folder)}
    sessions.by_name(model, settings)
    (file,) = kept(folder)
    sessions.by_name(other, settings)
    (of_other,) = set(kept(folder)) - {file}
    whole = of_other.read_bytes()
    of_other.write_bytes(file.read_bytes())
    capfd.readouterr()
    session = sessions.by_name(other, settings)
    assert "is not used: it holds another part" in capfd.readouterr().err
    sessions.assert_same(session, sessions.cpu(other), graphs.sample(2), "renamed")
    assert of_other.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_told_and_the_session_works(tmp_path, capfd, model):
    (tmp_path / "file").write_text("in the way")
    capfd.readouterr()
    session = sessions.by_name(model, {"cache_dir": str(tmp_path / "file")})
    assert "NPU cache: cannot" in capfd.readouterr().err
    sessions.assert_same(session, sessions.cpu(model), graphs.sample(2), "not cached")


def test_the_limit_holds_and_nonsense_is_refused(tmp_path, model):
    folder = tmp_path / "cache"
    for batch in range(1, 40):
        sessions.by_name(graphs.with_fixed_batch(batch).SerializeToString(), {"cache_dir": str(folder), "cache_mib": "1"})
    assert 0 < sum(file.stat().st_size for file in kept(folder)) <= 2**20
    for value in ("0", "many", "-1"):
        with pytest.raises(Exception, match="cache_mib"):
            sessions.by_name(model, {"cache_mib": value})


def test_processes_at_once_keep_one_file(library, tmp_path):
    folder = tmp_path / "cache"
    start = processes.START.format(folder=str(Path(__file__).parent), library=library)
    command = [sys.executable, "-c", start + SESSION, str(folder)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for child in started:
        out, err = child.communicate(timeout=processes.CHILD_LIMIT_S)
        assert (child.returncode, out.strip()) == (0, "done"), err
        assert "NPU cache" not in err, err
    assert len(kept(folder)) == 1


def test_the_environment_names_the_folder_and_an_option_overrides_it(tmp_path, capfd, monkeypatch, model):
    named, option, home = (tmp_path / name for name in ("named", "option", "home"))
    monkeypatch.setenv("NPU_CACHE_DIR", str(named))
    reference = sessions.cpu(model)
    for loaded in (0, 1):
        session, (stages,) = stages_of(capfd, lambda: sessions.by_name(model))
        assert stages[1:] == (loaded, 1) and (stages[0] == 0) == bool(loaded)
        sessions.assert_same(session, reference, graphs.sample(2), f"{loaded} loaded")
    assert len(kept(named)) == 1
    sessions.by_name(model, {"cache_dir": str(option)})
    assert (len(kept(named)), len(kept(option))) == (1, 1)
    _, (stages,) = stages_of(capfd, lambda: sessions.by_name(model, {"cache_dir": "off"}))
    assert stages[1:] == (0, 1), "off, and yet loaded"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    for value, count in (("off", 0), ("", 0), ("default", 1)):
        monkeypatch.setenv("NPU_CACHE_DIR", value)
        sessions.by_name(model)
        assert len(kept(home / "onnxruntime-ep-npu")) == count, value
    assert len(kept(named)) == 1
