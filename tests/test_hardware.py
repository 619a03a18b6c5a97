"""Odd machines, one small text file each under fixtures/hardware (`@file`, `@run`, `@env`, `@system` sections)."""

import copy
import ctypes
import pickle
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import hardware, units
from helpers.hardware import Gpu, Machine, Reading, detect

FIXTURES = Path(__file__).parent / "fixtures" / "hardware"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.txt"))
GIB, MIB, KIB = units.GIB, units.MIB, units.KIB


def read_fixture(name):
    """(files, programs, environment, (system, machine)) of one recorded or written machine."""
    files, programs, env, system = {}, {}, {}, ("Linux", "x86_64")
    lines = []
    for line in (FIXTURES / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        word, _, rest = line.partition(" ")
        if word in ("@file", "@run"):
            lines = (files if word == "@file" else programs).setdefault(rest, [])
        elif word == "@env":
            key, _, value = rest.partition("=")
            env[key] = value
        elif word == "@system":
            system = tuple(rest.split())
        else:
            lines.append(line)
    return *({key: "\n".join(text) + "\n" for key, text in d.items()} for d in (files, programs)), env, system


def write_tree(root, files):
    for path, text in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


@pytest.fixture
def machine(tmp_path):
    """A function: the machine of a fixture, with anything replaced."""

    def build(name, files=None, env=None, overrides=None, **world):
        recorded, programs, recorded_env, (system, processor) = read_fixture(name)
        write_tree(tmp_path, {**recorded, **(files or {})})
        arguments = {
            "root": tmp_path,
            "env": {**recorded_env, **(env or {})},
            "run": lambda command: programs.get(command[0], ""),
            "nvml": None,
            "psutil": None,
            "system": system,
            "machine": processor,
        }
        return detect(overrides, **{**arguments, **world})

    return build


def check_sane(found):
    """What must hold on every machine, however odd."""
    assert 0 <= found.ram_available_bytes <= found.ram_total_bytes
    assert found.cpu_threads >= 1 and found.cpu_physical_cores >= 1 and found.swap_free_bytes >= 0
    for name in hardware.NUMBERS[:-1]:
        assert isinstance(getattr(found, name), Reading) and getattr(found, name).source, name
    for word in (found.cpu_name, found.system, *found.environments):
        assert word.source
    for gpu in found.gpus:
        assert gpu.source and gpu.vram_total_bytes.source and gpu.vram_free_bytes.source
        assert gpu.vram_free_bytes >= 0 and gpu.backend == gpu.backend.lower()
    assert found.unified_memory == any(gpu.unified for gpu in found.gpus)
    assert found.repack in ("", "avx2", "avx512", "amx", "arm")
    assert str(found) == repr(found) and "<table>" in found._repr_html_()
    assert all(note.endswith((".", "?")) for note in found.notes), found.notes


# ---------------------------------------------------------------- every fixture


@pytest.mark.parametrize("name", NAMES)
def test_every_fixture_is_sane_and_complete(machine, name):
    found = machine(name)
    check_sane(found)
    assert found.ram_total_bytes > 0 and found.cpu_name
    assert not any("failed" in note for note in found.notes), found.notes


def test_fixtures_say_that_they_were_written():
    for name in NAMES:
        assert "not recorded on that hardware" in (FIXTURES / f"{name}.txt").read_text(encoding="utf-8"), name


def test_plain_laptop(machine):
    found = machine("laptop")
    assert found.ram_total_bytes == found.ram_physical_bytes == 16252928 * KIB
    assert found.ram_available_bytes == 9437184 * KIB
    assert found.ram_available_bytes.source == "/proc/meminfo MemAvailable"
    assert found.swap_free_bytes == 3 * GIB
    assert (found.cpu_threads, found.cpu_physical_cores) == (8, 4)
    assert found.cpu_name == "12th Gen Intel(R) Core(TM) i5-1240P"
    assert (found.repack, found.environments, found.gpus, found.notes) == ("avx2", (), (), ())


def test_old_kernel_without_memavailable(machine):
    text = "MemTotal: 1000000 kB\nMemFree: 100000 kB\nBuffers: 1000 kB\nCached: 20000 kB\n"
    found = machine("laptop", {"/proc/meminfo": text})
    assert found.ram_available_bytes == 121000 * KIB
    assert found.swap_free_bytes == 0 and found.swap_free_bytes.source == "not found"


def test_swap_compressed_in_ram_is_no_swap(machine):
    swaps = (
        "Filename Type Size Used Priority\n/dev/zram0 partition 1048576 48576 100\n/dev/sda2 partition 9999999 0 -2\n"
    )
    found = machine("laptop", {"/proc/swaps": swaps})
    assert found.swap_free_bytes == 3 * GIB - 1000000 * KIB and "zram" in found.swap_free_bytes.source


# ---------------------------------------------------------------- control groups: memory


def test_docker_v2_limit_less_use_without_file_cache(machine):
    found = machine("docker_v2")
    assert found.ram_physical_bytes == 32768000 * KIB
    assert found.ram_total_bytes == 2 * GIB
    assert found.ram_available_bytes == (2048 - (1536 - 700 - 324)) * MIB
    assert found.swap_free_bytes == 0 and "memory.swap.max" in found.swap_free_bytes.source
    assert found.environments == ("docker",) and found.environments[0].source == "/.dockerenv"
    assert not found.notes


def test_the_tightest_limit_is_an_ancestors_and_the_tightest_rest_another_ones(machine):
    found = machine("nested_v2")
    assert found.ram_total_bytes == 3 * GIB
    assert found.ram_total_bytes.source == "cgroup v2 /sys/fs/cgroup/kubepods.slice/pod7.slice/memory.max"
    assert found.ram_available_bytes == GIB
    assert "/sys/fs/cgroup/kubepods.slice/memory.max" in found.ram_available_bytes.source
    assert found.cpu_threads == 2 and "2.9 CPUs" in found.cpu_threads.source
    assert found.environments == ("docker",)


def test_memory_high_counts_as_a_limit(machine):
    found = machine("docker_v2", {"/sys/fs/cgroup/memory.high": str(1792 * MIB)})
    assert found.ram_total_bytes == 1792 * MIB and found.ram_total_bytes.source.endswith("memory.high")


def test_free_ram_of_the_host_can_be_the_tighter_one(machine):
    text = "MemTotal: 32768000 kB\nMemAvailable: 102400 kB\n"
    found = machine("docker_v2", {"/proc/meminfo": text})
    assert found.ram_available_bytes == 100 * MIB
    assert found.ram_available_bytes.source == "/proc/meminfo MemAvailable"


def test_use_above_the_limit_leaves_nothing(machine):
    found = machine("docker_v2", {"/sys/fs/cgroup/memory.current": str(9 * GIB)})
    assert found.ram_available_bytes == 0


@pytest.mark.parametrize("sentinel", ["9223372036854771712", "9223372036854710272", "9223372036854775807", "max", "-1"])
def test_v1_sentinel_is_no_limit(machine, sentinel):
    limit = "/sys/fs/cgroup/memory/user.slice/memory.limit_in_bytes"
    found = machine("v1_sentinel", {limit: sentinel})
    assert found.ram_total_bytes == 8192000 * KIB and "MemTotal" in found.ram_total_bytes.source
    assert found.ram_available_bytes == 6144000 * KIB
    assert machine("v1_sentinel", {limit: sentinel, "/proc/meminfo": ""}).ram_total_bytes == 0


def test_v1_limit_counts_children_swap_and_half_a_cpu(machine):
    found = machine("v1_limit")
    assert found.ram_total_bytes == 4 * GIB
    assert found.ram_available_bytes == (4096 - (3000 - 2000)) * MIB
    assert found.swap_free_bytes == 1000 * MIB
    assert found.cpu_threads == 1 and "0.5 CPUs" in found.cpu_threads.source


def test_v1_limit_of_an_ancestor_that_is_not_mounted(machine):
    found = machine("cgroupns_host_v1")
    assert found.ram_total_bytes == 768 * MIB and "hierarchical_memory_limit" in found.ram_total_bytes.source
    assert found.ram_available_bytes == 568 * MIB


def test_group_inside_the_part_that_is_mounted(machine):
    part = read_fixture("cgroupns_host_v1")[0]["/proc/self/cgroup"].splitlines()[0]
    files = {
        "/proc/self/cgroup": f"{part}/job\n",
        "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(512 * MIB),
    }
    assert machine("cgroupns_host_v1", files).ram_total_bytes == 512 * MIB


@pytest.mark.parametrize("mountinfo", [True, False])
def test_cgroupns_host_hides_the_limit_at_the_root_but_not_from_us(machine, mountinfo):
    found = machine("cgroupns_host_v2", {} if mountinfo else {"/proc/self/mountinfo": ""})
    assert found.ram_total_bytes == GIB and found.ram_available_bytes == 824 * MIB
    assert "docker-1f2e3d4c5b6a..." in found.ram_total_bytes.source


def test_hybrid_tree_and_amx(machine):
    found = machine("amx_vm")
    assert found.ram_total_bytes == 24684084 * KIB and found.repack == "amx"
    assert (found.cpu_threads, found.cpu_physical_cores, found.swap_free_bytes) == (2, 2, 0)
    assert found.swap_free_bytes.source == "/proc/meminfo SwapFree"


def test_cgroup_path_cannot_lead_out_of_the_tree(machine):
    found = machine("laptop", {"/proc/self/cgroup": "0::/../../proc\n", "/proc/memory.max": "4096"})
    assert found.ram_total_bytes == 16252928 * KIB


def test_mount_point_with_a_space(machine):
    files = {
        "/proc/self/mountinfo": r"31 23 0:27 / /my\040groups rw - cgroup2 cgroup2 rw",
        "/my groups/memory.max": str(GIB),
    }
    assert machine("laptop", files).ram_total_bytes == GIB


def test_a_container_without_a_visible_limit_says_so(machine):
    found = machine("laptop", {"/.dockerenv": ""})
    assert any("HELPERS_RAM_TOTAL_BYTES" in note for note in found.notes)


# ---------------------------------------------------------------- processor


@pytest.mark.parametrize(
    "quota, threads",
    [("150000 100000", 1), ("50000 100000", 1), ("100000 100000", 1), ("200000 100000", 2), ("399999 100000", 3)],
)
def test_quota_is_rounded_down_and_never_below_one(machine, quota, threads):
    found = machine("docker_v2", {"/sys/fs/cgroup/cpu.max": quota})
    assert found.cpu_threads == threads and "cpu.max" in found.cpu_threads.source


@pytest.mark.parametrize("quota", ["max 100000", "0 100000", "-1 100000", "100000", "x y", "100000 0", ""])
def test_no_quota_or_nonsense_leaves_affinity(machine, quota):
    assert machine("docker_v2", {"/sys/fs/cgroup/cpu.max": quota}).cpu_threads == 4


def test_cpuset(machine):
    found = machine("cpuset")
    assert found.cpu_threads == 2 and "Cpus_allowed_list" in found.cpu_threads.source
    assert found.cpu_physical_cores == 4


def test_affinity_is_asked_first_and_mask_may_name_absent_cpus(machine):
    assert machine("laptop", affinity=lambda: Reading(3, "asked")).cpu_threads == 3
    assert machine("laptop", {"/proc/self/status": "Cpus_allowed_list:\t0-127\n"}).cpu_threads == 8


@pytest.mark.parametrize("listed", ["3-1", "5-", "-", ",", "a-b", "0-99999999999999"])
def test_nonsense_mask(machine, listed):
    assert machine("laptop", {"/proc/self/status": f"Cpus_allowed_list:\t{listed}\n"}).cpu_threads == 8


def test_arm_board(machine):
    found = machine("raspberry_pi", machine="aarch64")
    assert found.cpu_name == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.repack == "arm" and "neon" in found.cpu_flags
    assert (found.cpu_threads, found.cpu_physical_cores) == (4, 4)


@pytest.mark.parametrize(
    "flags, repack",
    [
        (["avx2", "avx512f", "amx_int8"], "amx"),
        (["avx2", "avx512f", "amx_tile", "amx_bf16"], "avx512"),
        (["avx2"], "avx2"),
        (["avx", "sse4_2"], ""),
        (["neon", "asimddp"], "arm"),
        (["i8mm"], "arm"),
        (["neon"], ""),
    ],
)
def test_repack_follows_the_flags(machine, flags, repack):
    assert machine("laptop", overrides={"cpu_flags": flags}).repack == repack


# ---------------------------------------------------------------- where we are


def test_hub_limits_come_from_the_environment_and_are_advisory(machine):
    found = machine("hub")
    assert found.ram_total_bytes == 2 * GIB and "advisory" in found.ram_total_bytes.source
    assert found.ram_available_bytes == 2 * GIB - 102400 * KIB
    assert found.cpu_threads == 2 and "CPU_LIMIT" in found.cpu_threads.source
    assert found.environments == ("jupyterhub",)


@pytest.mark.parametrize("value", ["", "None", "lots", "-5", "0", "1.5G"])
def test_nonsense_mem_limit_is_no_limit(machine, value):
    found = machine("laptop", env={"MEM_LIMIT": value, "CPU_LIMIT": value.replace("1.5G", "nan")})
    assert found.ram_total_bytes == 16252928 * KIB and found.cpu_threads == 8


@pytest.mark.parametrize(
    "name, environments",
    [
        ("binder", ("binder", "jupyterhub")),
        ("codespaces", ("codespaces", "docker")),
        ("colab_t4", ("colab", "docker")),
        ("kaggle", ("docker", "kaggle")),
        ("wsl", ("wsl",)),
    ],
)
def test_environments(machine, name, environments):
    assert machine(name).environments == environments


def test_wsl_is_seen_without_its_variable(machine):
    found = machine("wsl", env={"WSL_DISTRO_NAME": ""})
    assert found.environments == ("wsl",) and found.environments[0].source == "/proc/version"
    assert any(".wslconfig" in note for note in found.notes)


def test_a_kaggle_login_on_a_laptop_is_not_kaggle(machine):
    assert machine("laptop", env={"KAGGLE_USERNAME": "ada", "KAGGLE_KEY": "x"}).environments == ()


def test_podman_and_bare_cgroup_signs(machine, tmp_path):
    assert machine("laptop", {"/run/.containerenv": ""}).environments == ("docker",)
    (tmp_path / "run/.containerenv").unlink()
    assert machine("laptop", {"/proc/self/cgroup": "0::/kubepods/x"}).environments == ("docker",)


# ---------------------------------------------------------------- NVIDIA


class NVMLError(Exception):
    """Speaks like pynvml's: the text says what happened."""


class FakeNVML:
    """pynvml as this room uses it. Figures are written after NVML's documentation, not recorded on that hardware.

    A card is a dict: name, uuid, memory (total, free) or an Exception, and slices: a list of cards, None for a gap.
    """

    def __init__(self, cards=(), init=None):
        self.cards, self.init, self.running = list(cards), init, 0

    def nvmlInit(self):
        if self.init:
            raise self.init
        self.running += 1

    def nvmlShutdown(self):
        self.running -= 1

    def nvmlDeviceGetCount(self):
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        if isinstance(self.cards[index], Exception):
            raise self.cards[index]
        return self.cards[index]

    def nvmlDeviceGetName(self, card):
        return card["name"]

    def nvmlDeviceGetUUID(self, card):
        return card.get("uuid", "")

    def nvmlDeviceGetMemoryInfo(self, card):
        if isinstance(card["memory"], Exception):
            raise card["memory"]
        total, free = card["memory"]
        return SimpleNamespace(total=total, free=free, used=0)

    def nvmlDeviceGetMigMode(self, card):
        if "mig" not in card:
            raise NVMLError("Not Supported")
        return [card["mig"], card["mig"]]

    def nvmlDeviceGetMaxMigDeviceCount(self, card):
        if "slices" not in card:
            raise NVMLError("Not Supported")
        return len(card["slices"])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card, index):
        if card["slices"][index] is None:
            raise NVMLError("Not Found")
        return card["slices"][index]


RTX_4090 = {"name": "NVIDIA GeForce RTX 4090", "uuid": "GPU-aaaa1111-x", "memory": (25757220864, 24696061952)}
T4 = {"name": b"Tesla T4", "uuid": b"GPU-bbbb2222-x", "memory": (16106127360, 15834546176)}
SLICE_5G = {"name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "uuid": "MIG-cccc3333-x", "memory": (5100273664, 5086642176)}
SLICE_20G = {
    "name": "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
    "uuid": "MIG-dddd4444-x",
    "memory": (20937965568, 20900000000),
}
A100 = {
    "name": "NVIDIA A100-SXM4-40GB",
    "uuid": "GPU-eeee5555-x",
    "memory": (42949672960, 42000000000),
    "mig": 1,
    "slices": [SLICE_5G, None, SLICE_20G],
}
GB10 = {"name": "NVIDIA GB10", "uuid": "GPU-ffff6666-x", "memory": NVMLError("Not Supported"), "mig": 0}


def test_the_fake_has_only_calls_the_real_module_has():
    pynvml = pytest.importorskip("pynvml")
    calls = [name for name in vars(FakeNVML) if name.startswith("nvml")]
    assert len(calls) > 8 and all(callable(getattr(pynvml, name)) for name in calls)
    assert str(pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)) == "Not Supported"
    assert "Library Not Found" in str(pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert str(pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)) == "Driver Not Loaded"


def test_rtx_4090(machine):
    nvml = FakeNVML([RTX_4090])
    (gpu,) = machine("laptop", nvml=nvml).gpus
    assert (gpu.name, gpu.vram_total_bytes, gpu.vram_free_bytes) == (RTX_4090["name"], *RTX_4090["memory"])
    assert (gpu.backend, gpu.unified, gpu.vram_free_bytes.source) == ("cuda", False, "NVML free")
    assert nvml.running == 0


def test_names_as_bytes(machine):
    assert machine("colab_t4", nvml=FakeNVML([T4])).gpus[0].name == "Tesla T4"


@pytest.mark.parametrize(
    "cards, visible, vram",
    [
        ([A100], None, 5100273664),
        ([A100], "MIG-dddd4444", 20937965568),
        ([A100], "MIG-dddd4444,MIG-cccc3333", 20937965568),
        ([RTX_4090, A100], None, 5100273664),
        ([RTX_4090, A100], "0", RTX_4090["memory"][0]),
    ],
)
def test_mig_is_one_slice_and_neither_their_sum_nor_the_whole_card(machine, cards, visible, vram):
    found = machine("laptop", nvml=FakeNVML(cards), env={} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert [gpu.vram_total_bytes for gpu in found.gpus] == [vram]
    assert any("MIG" in note and "2 can be seen" in note for note in found.notes)


def test_mig_card_that_may_not_be_asked(machine):
    card = {**A100, "memory": NVMLError("Insufficient Permissions")}
    del card["mig"]
    found = machine("laptop", nvml=FakeNVML([card]))
    assert [gpu.vram_total_bytes for gpu in found.gpus] == [5100273664]


def test_a_cut_card_without_a_slice_is_nobodys(machine):
    assert machine("laptop", nvml=FakeNVML([{**A100, "slices": []}])).gpus == ()


@pytest.mark.parametrize("memory", [NVMLError("Not Supported"), ("N/A", "N/A"), (0, 0)])
def test_gb10_shares_ram(machine, memory):
    found = machine("gb10", nvml=FakeNVML([{**GB10, "memory": memory}]))
    (gpu,) = found.gpus
    assert found.unified_memory and gpu.unified and gpu.name == "NVIDIA GB10"
    assert gpu.vram_total_bytes == found.ram_total_bytes and gpu.vram_free_bytes == found.ram_available_bytes


def test_one_broken_card_does_not_hide_the_others(machine):
    broken = {"name": "x", "memory": NVMLError("GPU is lost")}
    found = machine("laptop", nvml=FakeNVML([broken, NVMLError("Unknown Error"), RTX_4090]))
    assert [gpu.name for gpu in found.gpus] == ["NVIDIA GeForce RTX 4090"]
    assert any("GPU 0" in note and "GPU is lost" in note for note in found.notes)
    assert any("GPU 1" in note for note in found.notes)


def test_driver_mismatch_is_a_note(machine):
    nvml = FakeNVML(init=NVMLError("RM has detected an NVML/RM version mismatch."))
    found = machine("driver_mismatch", nvml=nvml)
    assert found.gpus == ()
    assert any("version mismatch" in note and "restart" in note for note in found.notes)


def test_driver_mismatch_by_nvidia_smi(machine):
    found = machine("driver_mismatch")
    assert found.gpus == () and any("Driver/library version mismatch" in note for note in found.notes)


@pytest.mark.parametrize("text", ["NVML Shared Library Not Found", "Driver Not Loaded"])
def test_no_nvidia_at_all_is_silent(machine, text):
    assert machine("laptop", nvml=FakeNVML(init=NVMLError(text))).notes == ()


def test_nvidia_smi_when_pynvml_is_missing(machine):
    (gpu,) = machine("colab_t4").gpus
    assert (gpu.name, gpu.vram_total_bytes, gpu.vram_free_bytes) == ("Tesla T4", 15360 * MIB, 15101 * MIB)
    assert gpu.source == "nvidia-smi"
    assert machine("wsl").gpus[0].name == "NVIDIA GeForce RTX 3070 Laptop GPU"


def test_nvidia_smi_gb10_and_mig(machine):
    found = machine("gb10")
    assert found.unified_memory and found.gpus[0].vram_total_bytes == found.ram_total_bytes
    row = "0, GPU-1, 40960, 40000, Enabled, NVIDIA A100\n"
    found = machine("laptop", run=lambda command: row if command[0] == "nvidia-smi" else "")
    assert found.gpus == () and any("nvidia-ml-py" in note for note in found.notes)


@pytest.mark.parametrize(
    "visible, names",
    [
        ("0", ["NVIDIA GeForce RTX 4090"]),
        ("1", ["Tesla T4"]),
        ("1,0", ["Tesla T4", "NVIDIA GeForce RTX 4090"]),
        ("GPU-bbbb2222", ["Tesla T4"]),
        ("-1", []),
        ("", []),
        ("0,9,1", ["NVIDIA GeForce RTX 4090"]),
        ("0,0", ["NVIDIA GeForce RTX 4090"]),  # the same memory is not there twice
        ("nonsense", []),
    ],
)
def test_cuda_visible_devices(machine, visible, names):
    found = machine("laptop", nvml=FakeNVML([RTX_4090, T4]), env={"CUDA_VISIBLE_DEVICES": visible})
    assert [gpu.name for gpu in found.gpus] == names
    assert len(names) == 2 or any("CUDA_VISIBLE_DEVICES" in note for note in found.notes)


@pytest.mark.parametrize(
    "cards, env, said",
    [
        ([T4, RTX_4090], {"CUDA_VISIBLE_DEVICES": "0"}, True),
        ([T4, RTX_4090], {"CUDA_VISIBLE_DEVICES": "1,0"}, True),
        ([T4, RTX_4090], {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, False),
        ([T4, RTX_4090], {"CUDA_VISIBLE_DEVICES": "GPU-bbbb2222"}, False),
        ([T4, RTX_4090], {"CUDA_VISIBLE_DEVICES": "-1"}, False),
        ([T4, T4], {"CUDA_VISIBLE_DEVICES": "0"}, False),
    ],
)
def test_a_number_may_mean_another_card_to_cuda_than_to_nvidia_smi(machine, cards, env, said):
    notes = machine("laptop", nvml=FakeNVML(cards), env=env).notes
    assert any("CUDA_DEVICE_ORDER=PCI_BUS_ID" in note for note in notes) is said


def test_names_of_drivers_move_no_cursor(machine):
    assert machine("intel_mac", run=lambda c: "machdep.cpu.brand_string: In\x1b[2Jtel\n").cpu_name == "In[2Jtel"
    row = "0, GPU-1, 8192, 8000, [N/A], GeForce\x1b[31m RTX\n"
    assert machine("laptop", run=lambda command: row).gpus[0].name == "GeForce[31m RTX"


def test_jetson(machine):
    files = {"/etc/nv_tegra_release": "# R36", "/proc/device-tree/model": "NVIDIA Jetson Orin Nano\0"}
    (gpu,) = machine("gb10", files, run=lambda command: "").gpus
    assert gpu.unified and gpu.name == "NVIDIA Jetson Orin Nano"


# ---------------------------------------------------------------- AMD, Apple, Windows, the engine


def test_amd_card(machine):
    found = machine("amd_dgpu")
    (gpu,) = found.gpus
    assert (gpu.vram_total_bytes, gpu.vram_free_bytes) == (25753026560, 25753026560 - 1073741824)
    assert (gpu.name, gpu.backend, gpu.unified) == ("AMD GPU 1002:744c", "rocm", False)
    assert any("Intel GPU" in note for note in found.notes)


def test_amd_inside_the_processor(machine):
    found = machine("amd_apu")
    (gpu,) = found.gpus
    assert gpu.unified and found.unified_memory
    assert gpu.vram_total_bytes == 536870912 + 16777216000
    assert gpu.vram_free_bytes == 268435456 + (16777216000 - 104857600)


def test_amd_inside_the_processor_cannot_borrow_more_than_is_free(machine):
    (gpu,) = machine("amd_apu", {"/proc/meminfo": "MemTotal: 32768000 kB\nMemAvailable: 1048576 kB\n"}).gpus
    assert gpu.vram_free_bytes == 268435456 + GIB


APU, CARD = "/sys/class/drm/card5/device/", "AMD GPU 1002:744c"
INSIDE = {  # a desktop processor's own graphics, beside a card
    APU + "vendor": "0x1002", APU + "device": "0x164e",
    APU + "mem_info_vram_total": str(512 * MIB), APU + "mem_info_vram_used": "0",
    APU + "mem_info_gtt_total": str(16 * GIB), APU + "mem_info_gtt_used": "0",
}  # fmt: skip


def test_graphics_inside_the_processor_do_not_make_a_cards_memory_shared(machine):
    for found in (machine("laptop", INSIDE, nvml=FakeNVML([RTX_4090])), machine("amd_dgpu", INSIDE)):
        assert len(found.gpus) == 1 and not found.unified_memory
        assert any("inside the processor" in note for note in found.notes)


@pytest.mark.parametrize(
    "env, names",
    [
        ({"HIP_VISIBLE_DEVICES": "0"}, [CARD]),
        ({"HIP_VISIBLE_DEVICES": "1"}, ["second"]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, ["second"]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-0a1b2c"}, ["second"]),
        ({"HIP_VISIBLE_DEVICES": ""}, []),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ({}, [CARD, "second"]),
    ],
)
def test_amd_cards_that_were_hidden(machine, env, names):
    second = "/sys/class/drm/card7/device/"
    files = {"product_name": "second", "mem_info_vram_total": str(8 * GIB), "unique_id": "0a1b2c3d4e5f6071\n"}
    found = machine("amd_dgpu", {second + name: text for name, text in files.items()}, env=env)
    assert [gpu.name for gpu in found.gpus] == names
    assert bool(env) is any("VISIBLE_DEVICES" in note for note in found.notes)


def test_amd_card_not_handed_to_the_container(machine, tmp_path):
    found = machine("amd_dgpu", {"/.dockerenv": ""})
    assert found.gpus == () and any("/dev/kfd" in note for note in found.notes)
    (tmp_path / "dev/dri").mkdir(parents=True)
    assert len(machine("amd_dgpu").gpus) == 1


def test_apple_m3(machine):
    found = machine("apple_m3")
    assert found.ram_total_bytes == 16 * GIB and found.system == "Darwin"
    assert found.ram_available_bytes == (60000 + 290000 + 2000) * 16384
    assert found.swap_free_bytes == int(954.5 * MIB)
    assert (found.cpu_name, found.cpu_threads, found.cpu_physical_cores, found.repack) == ("Apple M3", 8, 8, "arm")
    (gpu,) = found.gpus
    assert found.unified_memory and gpu.backend == "metal"
    assert gpu.vram_total_bytes == 16 * GIB * 2 // 3 and "assumed" in gpu.source
    assert gpu.vram_free_bytes == found.ram_available_bytes


def test_apple_limit_set_by_hand_and_large_mac_and_decimal_comma(machine):
    text = read_fixture("apple_m3")[1]["sysctl"]
    assert machine("apple_m3", run=lambda c: text.replace("954.50M", "954,50M")).swap_free_bytes == int(954.5 * MIB)
    by_hand = text.replace("wired_limit_mb: 0", "wired_limit_mb: 14336")
    assert machine("apple_m3", run=lambda c: by_hand).gpus[0].vram_total_bytes == 14 * GIB
    large = text.replace("17179869184", str(64 * GIB))
    assert machine("apple_m3", run=lambda c: large).gpus[0].vram_total_bytes == 48 * GIB


def test_apple_with_psutil_and_rosetta(machine):
    psutil = SimpleNamespace(
        virtual_memory=lambda: SimpleNamespace(total=16 * GIB, available=5 * GIB),
        swap_memory=lambda: SimpleNamespace(free=GIB),
    )
    translated = read_fixture("apple_m3")[1]["sysctl"].replace("translated: 0", "translated: 1")
    found = machine("apple_m3", psutil=psutil, machine="x86_64", run=lambda c: translated)
    assert (found.ram_available_bytes, found.swap_free_bytes) == (5 * GIB, GIB)
    assert len(found.gpus) == 1 and any("Rosetta" in note for note in found.notes)
    assert "neon" not in found.cpu_flags and found.repack == ""  # it runs llama.cpp for Intel


def test_intel_mac_has_no_unified_memory(machine):
    found = machine("intel_mac")
    assert (found.gpus, found.unified_memory, found.repack, found.cpu_physical_cores) == ((), False, "avx2", 4)


class FakeWindows:
    def memory(self):
        return 16 * GIB, 6 * GIB, 9 * GIB

    def feature(self, number):
        return number in (39, 40)

    def registry(self, key, value):
        if value == "DriverDesc":
            return {"0000": "Microsoft Basic Display Adapter", "0001": "AMD Radeon RX 6800"}.get(key[-4:])
        return "AMD Ryzen 5 5600X 6-Core Processor  "


def test_windows(tmp_path):
    found = detect(None, tmp_path, {}, system="Windows", windows=FakeWindows(), affinity=lambda: Reading(12, "asked"))
    check_sane(found)
    assert (found.ram_total_bytes, found.ram_available_bytes, found.swap_free_bytes) == (16 * GIB, 6 * GIB, 3 * GIB)
    assert (found.cpu_name, found.repack, found.cpu_threads) == ("AMD Ryzen 5 5600X 6-Core Processor", "avx2", 12)
    assert found.cpu_flags.source == "IsProcessorFeaturePresent"
    (note,) = found.notes
    assert "AMD Radeon RX 6800" in note and "HELPERS_VRAM_BYTES" in note


def test_windows_name_from_the_environment(tmp_path):
    env = {"PROCESSOR_IDENTIFIER": "Intel64 Family 6 Model 154"}
    found = detect(None, tmp_path, env, system="Windows", windows=None)
    assert found.cpu_name == env["PROCESSOR_IDENTIFIER"] and found.cpu_name.source == "PROCESSOR_IDENTIFIER"


def test_windows_asks_with_a_structure_of_the_right_size(monkeypatch):
    def answer(pointer):
        status = pointer._obj
        assert status.length == ctypes.sizeof(status) == 64
        status.total, status.free, status.commit_free = 3, 2, 1
        return 1

    kernel32 = SimpleNamespace(GlobalMemoryStatusEx=answer)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)
    assert hardware._Windows().memory() == (3, 2, 1)


# ---------------------------------------------------------------- nothing, garbage, exceptions


def test_no_proc_at_all(tmp_path):
    found = detect(None, tmp_path, {})
    check_sane(found)
    assert (found.ram_total_bytes, found.ram_available_bytes, found.cpu_threads) == (0, 0, 1)
    assert any("HELPERS_RAM_TOTAL_BYTES" in note for note in found.notes)
    assert any("HELPERS_CPU_THREADS" in note for note in found.notes)
    check_sane(detect(None, tmp_path / "not there", {}))


def test_only_a_limit_is_known(tmp_path):
    found = detect(None, write_tree(tmp_path, {"/sys/fs/cgroup/memory.max": str(GIB)}), {})
    assert found.ram_total_bytes == found.ram_available_bytes == GIB
    assert "not found" in found.ram_physical_bytes.source


GARBAGE = {
    "empty": b"",
    "binary": bytes(range(256)) * 8,
    "negative": b"-1\n",
    "huge": b"9" * 5000,
    "colons": b": : :\n::\n0::\n1:memory\n" * 20,
    "no newline": b"x" * 200_000,
    "html": b"MemTotal: <script>alert(1)</script> kB\nmodel name : <b>x</b>\x1b[31m\nflags : <i>\n",
    "numbers": b"MemTotal: 999999999999999 kB\nMemAvailable: 999999999999999 kB\ncpu cores : 1\nprocessor : 0\n",
}


@pytest.mark.parametrize("kind", sorted(GARBAGE))
@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows", "Plan9"])
def test_garbage_in_every_file_and_program(tmp_path, kind, system):
    paths = {path for name in NAMES for path in read_fixture(name)[0]}
    write_tree(tmp_path, dict.fromkeys(paths, GARBAGE[kind]))
    found = detect(None, tmp_path, {}, run=lambda command: GARBAGE[kind].decode(errors="replace"), system=system)
    check_sane(found)
    assert "<script>" not in found._repr_html_() and "\x1b" not in str(found)


def test_folders_where_files_should_be(tmp_path):
    for path in {path for name in NAMES for path in read_fixture(name)[0]}:
        (tmp_path / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    check_sane(detect(None, tmp_path, {}))


def test_everything_raises(tmp_path):
    class Broken:
        def __getattr__(self, name):
            raise RuntimeError("broken " + name)

    def broken(*arguments):
        raise OSError("broken")

    for system in ("Linux", "Darwin", "Windows"):
        found = detect(
            {"cpu_flags": 7, "gpus": None},
            tmp_path,
            {"HELPERS_VRAM_BYTES": "\0"},
            run=broken,
            nvml=Broken(),
            psutil=Broken(),
            affinity=broken,
            windows=Broken(),
            system=system,
        )
        check_sane(found)
        assert found.notes


def test_damaged_fixtures_never_raise(tmp_path):
    chance = random.Random(7)
    for turn in range(150):
        files, programs, env, (system, processor) = read_fixture(chance.choice(NAMES))
        damaged = {path: damage(text, chance) for path, text in files.items()}
        programs = {name: damage(text, chance) for name, text in programs.items()}
        root = write_tree(tmp_path / str(turn), damaged)
        run = lambda command, programs=programs: programs.get(command[0], "")  # noqa: E731
        env = {key: damage(value, chance) for key, value in env.items()}
        check_sane(detect(None, root, env, run=run, system=system, machine=processor))


def damage(text, chance):
    letters = list(text)
    for _ in range(chance.randint(0, 1 + len(letters) // 20)):
        place = chance.randrange(len(letters) + 1)
        letters[place : place + chance.randint(0, 3)] = chance.choice(
            ["", "-", "9", ":", "\n", " ", "/", "é", "0" * 30]
        )
    return "".join(letters)


# ---------------------------------------------------------------- overrides


def test_overrides_by_argument_beat_those_by_environment(machine):
    env = {"HELPERS_RAM_TOTAL_BYTES": str(6 * GIB), "HELPERS_CPU_THREADS": "3", "HELPERS_VRAM_BYTES": str(4 * GIB)}
    found = machine("laptop", env=env, overrides={"cpu_threads": 5})
    assert found.ram_total_bytes == 6 * GIB and found.ram_total_bytes.source == "HELPERS_RAM_TOTAL_BYTES"
    assert found.ram_available_bytes == 6 * GIB and found.ram_available_bytes.source.startswith(
        "no more than the limit"
    )
    assert found.cpu_threads == 5 and found.cpu_threads.source == "you said so"
    assert found.gpus[0].backend == "pretend" and found.gpus[0].vram_total_bytes == 4 * GIB


def test_every_number_can_be_overridden(machine):
    values = {name: 7 + i for i, name in enumerate(hardware.NUMBERS)}
    values["ram_available_bytes"] = 5
    found = machine("laptop", overrides=values)
    for name in hardware.NUMBERS[:-1]:
        assert getattr(found, name) == values[name] and getattr(found, name).source == "you said so"
    assert found.gpus[0].vram_total_bytes == values["vram_bytes"]


def test_more_free_than_there_is_raises_the_total(machine):
    found = machine("laptop", overrides={"ram_available_bytes": 64 * GIB})
    assert found.ram_available_bytes == found.ram_total_bytes == 64 * GIB


def test_video_memory_override_keeps_the_name_and_zero_removes(machine):
    gpu = machine("laptop", nvml=FakeNVML([RTX_4090]), overrides={"vram_bytes": 8 * GIB}).gpus[0]
    assert (gpu.name, gpu.backend, gpu.vram_free_bytes) == ("NVIDIA GeForce RTX 4090", "cuda", 8 * GIB)
    assert machine("laptop", nvml=FakeNVML([RTX_4090]), overrides={"vram_bytes": 0}).gpus == ()


def test_video_memory_override_of_shared_memory_stays_shared(machine):
    found = machine("apple_m3", overrides={"vram_bytes": 12 * GIB})
    assert found.gpus[0].vram_total_bytes == 12 * GIB
    assert found.gpus[0].unified and found.unified_memory  # else a model could have the same bytes twice


def test_words_can_be_overridden(machine):
    gpu = Gpu("mine", Reading(1, "x"), Reading(1, "x"), "vulkan", unified=True, source="x")
    found = machine("laptop", overrides={"cpu_name": "Z80", "cpu_flags": ["AVX2"], "gpus": [gpu], "system": "CP/M"})
    assert (found.cpu_name, found.cpu_name.source, found.system) == ("Z80", "you said so", "CP/M")
    assert "avx2" in found.cpu_flags and found.gpus == (gpu,) and found.unified_memory


@pytest.mark.parametrize("value", ["16 GB", "", "-1", "1e9", None, 1.5, [], "9" * 99])
def test_nonsense_override_is_ignored_and_said(machine, value):
    found = machine("laptop", overrides={"ram_total_bytes": value})
    assert found.ram_total_bytes == 16252928 * KIB
    assert any(repr(value) in note for note in found.notes)


def test_misspelt_override_names_the_near_one(machine):
    (note,) = machine("laptop", overrides={"ram_totl_bytes": 1}).notes
    assert "ram_total_bytes" in note


# ---------------------------------------------------------------- the values themselves


def test_pretend():
    found = Machine.pretend("old PC", 2 * GIB, ram_total_bytes=4 * GIB, vram_bytes=GIB, cpu_threads=2)
    check_sane(found)
    assert (found.ram_total_bytes, found.ram_available_bytes, found.cpu_threads) == (4 * GIB, 2 * GIB, 2)
    assert found.gpus[0].vram_total_bytes == GIB and found.cpu_name == "old PC"
    assert Machine.pretend("x", GIB).ram_total_bytes == GIB and Machine.pretend("x", GIB).gpus == ()


@pytest.mark.parametrize(
    "bad", [{"ram_available_bytes": -1}, {"ram_total_bytes": 1}, {"vram_bytes": -1}, {"cpu_threads": 0}]
)
def test_pretend_refuses_nonsense(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        Machine.pretend(**{"name": "x", "ram_available_bytes": GIB, **bad})


@pytest.mark.parametrize("value", [Reading(5, "here"), hardware.Word("a", "here"), hardware.Flags(["a"], "here")])
def test_values_keep_their_source_when_copied(value):
    for twin in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert twin == value and twin.source == "here"


def test_table_shows_gib_and_source_and_escapes(machine):
    found = machine("laptop", overrides={"cpu_name": "<b>&"})
    assert "9.0 GiB" in str(found) and "/proc/meminfo MemAvailable" in str(found)
    assert "<b>" not in found._repr_html_() and "&lt;b&gt;&amp;" in found._repr_html_()
    assert str(found).splitlines()[0].split() == ["What", "Value", "How", "we", "know"]


def test_machine_is_frozen(machine):
    with pytest.raises(AttributeError):
        machine("laptop").ram_total_bytes = 1


# ---------------------------------------------------------------- this machine, for consistency only


def test_this_machine():
    found = detect()
    check_sane(found)
    assert found.ram_total_bytes > 0


def test_a_missing_package_changes_the_source_and_not_the_machine():
    with_psutil, without = detect(nvml=None), detect(nvml=None, psutil=None)
    assert with_psutil.ram_physical_bytes == without.ram_physical_bytes or without.system == "Windows"
    assert with_psutil.cpu_threads == without.cpu_threads
    check_sane(without)


def test_run_tolerates_a_program_that_is_not_there_or_fails():
    run = hardware._remember(hardware._run)
    assert run(["no such program here"]) == ""
    assert run([sys.executable, "-c", "print('said'); raise SystemExit(3)"]).strip() == "said"


def test_import_is_light():
    code = (
        "import sys, helpers.hardware; "
        "print([m for m in ('psutil', 'pynvml', 'numpy', 'llama_cpp', 'ctypes') if m in sys.modules])"
    )
    home = Path(hardware.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("told, total, source", [(4, 4 * GIB, "navigator"), (None, 8 * GIB, "assumed")])
def test_a_browser_page_says_what_it_was_told_or_assumes(tmp_path, monkeypatch, told, total, source):
    monkeypatch.setitem(sys.modules, "js", SimpleNamespace(navigator=SimpleNamespace(deviceMemory=told)))
    found = hardware.detect(root=tmp_path, env={}, run=lambda _: "", psutil=None, nvml=None, system="Emscripten")
    assert found.ram_total_bytes == found.ram_available_bytes == total
    assert found.ram_total_bytes.source.startswith(source)
    assert "browser" in found.environments and "browser" in " ".join(found.notes)
