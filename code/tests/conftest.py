"""Shared set-up of the tests: the source folders on the path, one thread, where golden numbers and annotations lie."""

import os
import re
import signal
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"         # before NumPy and PyTorch load; processes that tests start inherit it

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "code" / "tests"             # files that share set-up import it from each other, whatever their folders
sys.path[:0] = [str(ROOT / "code" / folder) for folder in (
    "src", "tests", "benchmarks", "AVSBench_downstream/avs_scripts/avs_s4")]
sys.path += [str(path) for path in sorted(TESTS.iterdir()) if path.is_dir() and path.name != "golden"]
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:      # as a shell leaves it to what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
RECORDINGS = Path(os.environ.get("CMG_SPOKEN", ROOT.parent / "shared" / "real"))
for name in [name for name in os.environ if name.startswith("CMG_")]:
    del os.environ[name]                    # a user's own paths must not reach the tests


LONG = ("test_parity.py", "test_disk.py", "test_distributed.py", "test_resume.py", "test_sizes.py", "test_pictures.py",
        "test_report.py", "test_tasks.py", "test_padding.py", "test_types.py", "test_bad_input.py", "test_natural.py",
        "test_data_sets.py", "test_custom.py", "test_python.py", "test_spoken.py")


def pytest_collection_modifyitems(items):
    """Files that take long come first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def message(function, *args, **kwargs):
    """The one line of the InputError that a call must raise."""
    from cmg.utils.errors import InputError
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(match, function, *args, **kwargs):
    """A call must raise InputError with one line in which the pattern `match` is found."""
    text = message(function, *args, **kwargs)
    assert re.search(match, text), text


@pytest.fixture(scope="session", autouse=True)
def fingerprint_cache(tmp_path_factory):
    """Fingerprints of data are kept in a folder of the session, not in the user's cache."""
    os.environ["CMG_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def golden():
    """Folder of the project's copy of the golden numbers."""
    return ROOT / "code" / "tests" / "golden"


@pytest.fixture(scope="session")
def annotations():
    """Folder of real annotation files; they may not be redistributed, so tests that parse them skip without it."""
    folder = ROOT.parent / "shared" / "annotations"
    if not folder.is_dir():
        pytest.skip(f"no real annotation files: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def recordings():
    """Folder of the archives of Spoken Digits; CMG_SPOKEN names it. No test downloads them."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no real recordings: {RECORDINGS} is absent; CMG_SPOKEN names another folder")
    return RECORDINGS


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory):
    """Root of a demo tree with 80 pretraining clips."""
    from cmg.data.layout import DATA_PATHS
    from cmg.demos import dialled as demo_tree
    root = tmp_path_factory.mktemp("demo") / "data"
    demo_tree.build(root, DATA_PATHS, clips=80, progress=False)
    return root


@pytest.fixture(scope="session")
def spoken_data(recordings, tmp_path_factory):
    """Root of Spoken Digits with 80 pretraining clips."""
    from cmg.data.layout import DATA_PATHS
    from cmg.demos import spoken as spoken_tree
    root = tmp_path_factory.mktemp("spoken") / "data"
    assert spoken_tree.build(root, DATA_PATHS, recordings, clips=80, progress=False)
    return root


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """"weights" and "about" of a small encoder that was exported."""
    import foreign_files
    return foreign_files.exported(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def reader():
    """A process that reads files of strangers, with little room."""
    from foreign_reader import ReaderProcess
    process = ReaderProcess()
    yield process
    process.close()


@pytest.fixture(scope="module")
def small_model():
    """`pretrain` builds a model a hundredth of the demo's size."""
    from kill_resume import narrowed
    with narrowed():
        yield


@pytest.fixture
def other_rounding(monkeypatch):
    """Distances to codes as another processor may give them: in each call another last bit in every column."""
    from cmg.models import codebook
    plain, generator = codebook.squared_distance, torch.Generator().manual_seed(0)

    def rounded(rows, codes):
        size = (rows ** 2).sum(-1, keepdim=True) + (codes ** 2).sum(-1)[..., None, :]
        steps = torch.randint(-2, 3, codes.shape[-2:-1], generator=generator).to(rows.dtype)
        return (plain(rows, codes) + steps * torch.finfo(rows.dtype).eps * size).clamp_min(0)
    monkeypatch.setattr(codebook, "squared_distance", rounded)
