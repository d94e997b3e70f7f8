"""A Linux that is too old for today's torch on an AMD card: what to upgrade, in which order."""

import pytest

from library.hardware import old_system
from library.messages import set_language


@pytest.fixture
def system(tmp_path):
    """system("20.04", "5.4.0-42-generic", "5.2.0") -> what is read of such a machine."""
    set_language("en")

    def build(version, kernel, rocm=None, vendor="0x1002"):
        (tmp_path / "os-release").write_text(
            f'NAME="Ubuntu"\nVERSION_ID="{version}"\nID=ubuntu\nPRETTY_NAME="Ubuntu {version}.1 LTS"\n'
        )
        card = tmp_path / "pci" / "0000:03:00.0"
        card.mkdir(parents=True)
        (card / "class").write_text("0x030000\n")
        (card / "vendor").write_text(f"{vendor}\n")
        if rocm:
            (tmp_path / "version").write_text(rocm)
        return old_system.read_system(tmp_path / "os-release", tmp_path / "version", tmp_path / "pci", kernel)

    return build


def test_ubuntu_20_04_with_rocm_5_2_is_told_what_to_upgrade_in_order(system):
    (line,) = old_system.advice(system("20.04", "5.4.0-42-generic", "5.2.0-65"))
    assert line.startswith("too old for today's torch on an AMD card: Ubuntu 20.04.1 LTS, Linux 5.4, ROCm 5.2")
    order = ["amdgpu-uninstall", "Ubuntu 24.04", "render,video", "virtual environment", "requirements.txt"]
    assert [line.index(word) for word in order] == sorted(line.index(word) for word in order)


def test_an_old_kernel_alone_is_told(system):
    (line,) = old_system.advice(system("22.04", "5.4.0-1-generic"))
    assert "an AMD card: Linux 5.4. Upgrade" in line


def test_an_old_rocm_on_a_new_system_is_not_needed(system):
    (line,) = old_system.advice(system("24.04", "6.8.0-31-generic", "5.7.1"))
    assert "ROCm 5.7 (/opt/rocm) is older than the ROCm that torch brings along" in line


@pytest.mark.parametrize(
    "machine",
    [("24.04", "6.8.0-31-generic"), ("24.04", "6.8.0", "7.2.0"), ("20.04", "5.4.0", None, "0x10de")],
)
def test_others_are_told_nothing(system, machine):
    assert old_system.advice(system(*machine)) == []


def test_a_system_without_these_files_is_told_nothing(tmp_path):
    none = tmp_path / "none"
    assert old_system.advice(old_system.read_system(none, none, none, "")) == []
