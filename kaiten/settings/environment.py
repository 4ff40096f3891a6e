"""Environment variables other than the settings, and the files that lie beside the code.

Only this package accesses the environment: a setting is an environment variable too, and a worker
must see the one that its parent saw.
"""

import os
import stat
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from platformdirs import user_data_path

from kaiten.errors import Detail, InvalidSettings


def find_root(package: Path) -> Path:
    """Return the folder with service.py and the settings files, given that of this package.

    It is the one above the package in a checkout and in a bento. A wheel has it in the package:
    kaiten/bundle, which setup.py makes.
    """
    bundle = package / "bundle"
    return bundle if bundle.is_dir() else package.parent


ROOT = find_root(Path(__file__).resolve().parents[1])
# Every setting is also an environment variable, PREFIX + SECTION + "__" + KEY.
PREFIX = "KAITEN_"
# env_start and env_end among the fields of /proc/PID/stat that follow the command's name.
_ENVIRONMENT_START, _ENVIRONMENT_END = 47, 48


def settings_file() -> Path | None:
    """Return the settings file, None if there is none.

    It is KAITEN_CONFIG, else the kaiten.yaml in the working directory, else the one beside
    service.py, which a wheel has too. A bento reads its own, because that pins its models.

    Raises:
        InvalidSettings: KAITEN_CONFIG names no file, or another user controls the one in the
            working directory.

    """
    name = os.environ.get("KAITEN_CONFIG")
    if name is None:
        local, shipped = Path("kaiten.yaml").absolute(), ROOT / "kaiten.yaml"
        if local != shipped and not is_bento() and local.is_file():
            _check_owner(local)
            return local
        return shipped if shipped.is_file() else None
    if not Path(name).is_file():
        problem = Detail("KAITEN_CONFIG", f"{name} is not a file; give an absolute path")
        raise InvalidSettings([problem], "environment")
    return Path(name)


def _check_owner(file: Path) -> None:
    """Reject a settings file that another user controls: it may name programs and secrets.

    Raises:
        InvalidSettings: Another user owns the file or a link to it, or every user may write it.

    """
    if sys.platform == "win32":
        return
    owners = {file.stat().st_uid, file.lstat().st_uid} - {0, os.getuid()}
    if owners:
        reason = f"belongs to user {owners.pop()}; run this in another folder"
    elif file.stat().st_mode & stat.S_IWOTH:
        reason = f"can be changed by every user; run: chmod o-w {file}"
    else:
        return
    problem = Detail(str(file), f"{reason}, or name the file in KAITEN_CONFIG if you trust it")
    raise InvalidSettings([problem], "working directory")


def secrets_folder() -> Path | None:
    """Return the folder of secret files, KAITEN_SECRETS, if it is set."""
    name = os.environ.get("KAITEN_SECRETS")
    return Path(name) if name else None


def bentoml_configuration() -> str | None:
    """Return the path of BentoML's configuration file, BENTOML_CONFIG, if it is set."""
    return os.environ.get("BENTOML_CONFIG")


def configuration_file() -> str:
    """Return the path of BentoML's configuration file: BENTOML_CONFIG, else the project's own.

    Raises:
        InvalidSettings: BENTOML_CONFIG names no file.

    """
    name = bentoml_configuration()
    if name is not None and not Path(name).is_file():
        problem = Detail("BENTOML_CONFIG", f"{name} is not a file; give an absolute path")
        raise InvalidSettings([problem], "environment")
    return name or str(ROOT / "configuration.yaml")


def metrics_directory() -> str | None:
    """Return the directory in which the workers share metrics, if BentoML has set one."""
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR")


def cuda_visible_devices() -> str | None:
    """Return the CUDA devices that this process may use, CUDA_VISIBLE_DEVICES, if it is set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def set_cuda_visible_devices(names: Sequence[str]) -> None:
    """Restrict this process and its children to these devices; call it before CUDA is used."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names)


def disable_openmp_spinning() -> None:
    """Let OpenMP threads sleep while they wait, unless OMP_WAIT_POLICY says otherwise.

    Call it before torch is imported. Spinning threads of two processes on the same cores slow both
    down by a factor of 20.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def environment_for(overrides: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with some variables replaced, for a new process."""
    return {**os.environ, **overrides}


def environment_for_build(home: Path) -> dict[str, str]:
    """Return the environment for BentoML's build: no settings, except for ``home``.

    The build imports the service, and its result must depend on the files alone.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    variables.pop("BENTOML_CONFIG", None)
    path = f"{Path(sys.executable).parent}{os.pathsep}{variables.get('PATH', '')}"
    return {**variables, "PATH": path, "KAITEN_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}


def bento_models() -> Path | None:
    """Return the folder of models inside the bento, as images have one; None elsewhere."""
    models = ROOT.parent / "models"
    return models if is_bento() and models.is_dir() else None


def is_bento() -> bool:
    """Return whether this code runs from a bento: bento.yaml is beside its src folder."""
    return (ROOT.parent / "bento.yaml").is_file()


def is_checkout() -> bool:
    """Return whether this code runs from a checkout, and neither from a bento nor installed."""
    # A distribution may leave a pyproject.toml of its own beside an installed package.
    names = ("pyproject.toml", "bentofile.yaml")
    return not is_bento() and all((ROOT / name).is_file() for name in names)


def default_home() -> Path:
    """Return the folder of the state without KAITEN_HOME: one per checkout, else one per user.

    It does not depend on the working directory: a command that is started elsewhere must find the
    same secret and API keys. Nor is it inside a bento or an installed package, which come and go.
    """
    if is_checkout():
        return ROOT / ".kaiten"
    return user_data_path("kaiten", appauthor=False)


def remove_variables(names: Collection[str]) -> bool:
    """Remove variables from this process's environment, so that no child inherits them.

    /proc/PID/environ shows the initial environment until the process ends, so their values are
    overwritten there as well. Returns False if the system does not permit that.
    """
    for name in names:
        del os.environ[name]
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(fields[_ENVIRONMENT_START]), int(fields[_ENVIRONMENT_END])
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            position = start
            for entry in memory.read(end - start).split(b"\0"):
                variable, _, value = entry.partition(b"=")
                if os.fsdecode(variable) in names:
                    memory.seek(position + len(variable) + 1)
                    memory.write(bytes(len(value)))
                position += len(entry) + 1
    except (OSError, IndexError):
        return False
    return True
