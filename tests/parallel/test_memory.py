"""A run that needs more memory than there is, is refused before it begins."""

import pytest
from conftest import ROOT, config_of
from networks import Linear

import mnist_cnn
from mnist_cnn.data.dataset import Dataset
from mnist_cnn.errors import UserError
from mnist_cnn.parallel import memory
from mnist_cnn.runner import smoke

GB = 10**9


@pytest.fixture
def machine(tmp_path):
    """Writes the files of a machine: path -> content."""

    def write(files):
        for name, content in ({"proc/meminfo": "MemAvailable: 8000000 kB\n"} | files).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8_192_000_000),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "5000"}, 5000),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, 8_192_000_000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "7000"}, 7000),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/of/the/host\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "6000\n",
            },
            6000,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/a\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096),
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "3000",
            },
            3000,
        ),
    ],
)
def test_memory_is_that_of_the_machine_or_the_limit_of_a_cgroup_of_either_version(
    files, expected, machine
):
    assert memory.available_memory(machine(files)) == expected


def test_memory_of_this_machine_is_known():
    assert 0 < memory.available_memory() < float("inf")


def test_500_networks_on_a_machine_of_23_gb_are_refused_with_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 23.0 * GB)
    config = mnist_cnn.experiment(num_seeds=500, report=False)
    with pytest.raises(UserError) as error:
        mnist_cnn.run(config, tmp_path / "run")
    text = str(error.value)
    assert "500 networks" in text and "39.3 MB each" in text and "\n" not in text
    assert "need about 98.3 GB" in text and "23.0 GB are available, for about 116;" in text
    assert not (tmp_path / "run").exists()


def test_more_images_than_fit_are_refused_before_they_are_read(tmp_path, monkeypatch):
    def read(*_):
        raise AssertionError("the images were read")

    monkeypatch.setattr(Dataset, "read", read)
    monkeypatch.setattr(memory, "available_memory", lambda: 0.047 * GB)
    with pytest.raises(UserError) as error:
        mnist_cnn.run(mnist_cnn.experiment(report=False), tmp_path / "run")
    assert str(error.value) == (
        "60,000 training images of 28x28x1 need 0.09 GB of memory, but this machine has 0.05 GB, "
        "for 29,974; train on fewer: --config.train_split='train[:29974]'"
    )
    assert not (tmp_path / "run").exists()


def test_more_images_than_a_device_holds_are_refused(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 16 * GB}

    monkeypatch.setattr(memory, "available_memory", lambda: 256.0 * GB)
    memory.check_data(1_000_000, (28, 28, 1), Device())
    with pytest.raises(UserError, match=r"need 19.66 GB of memory, but each device has 16.00 GB"):
        memory.check_data(400_000, (128, 128, 3), Device())


def test_documentation_has_the_factors_of_the_estimate():
    text = (ROOT / "docs" / "devices-and-hosts.md").read_text()
    assert (
        f"up to {memory._COPIES + 1:g} times" in text and f"{memory._COPIES:g} times on a" in text
    )


@pytest.mark.slow
def test_networks_that_fit_are_trained_and_one_more_is_refused(
    tiny_experiment, tmp_path, monkeypatch, capsys
):
    """The data counts as well; without states on the host, more networks fit."""
    monkeypatch.setattr(memory, "available_memory", lambda: 4.5e6 + 2 * 396_000)
    changes = {"model": Linear(), "num_steps": 1, "seed": 1}
    with pytest.raises(UserError, match=r"11 networks .* for about 9;"):
        mnist_cnn.run(config_of(tiny_experiment, num_seeds=11, **changes), tmp_path / "refused")
    assert smoke.check(config_of(tiny_experiment, num_seeds=11, **changes)) is False
    assert "11 networks" in capsys.readouterr().out
    result = mnist_cnn.run(config_of(tiny_experiment, num_seeds=3, **changes), tmp_path / "run")
    assert len(result["seeds"]) == 3
    with pytest.raises(UserError):
        memory.check_sizes(11, 100_000, 396_000, states_on_host=True, processes=1)
    memory.check_sizes(11, 100_000, 396_000, states_on_host=False, processes=1)
