"""Hands the settings of a server's parent process down to its workers, by a snapshot."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr

from kaiten.cpus import cores_per_process
from kaiten.settings.environment import PREFIX, remove_variables, set_cuda_visible_devices
from kaiten.settings.loader import Settings
from kaiten.settings.models import IssuerSettings
from kaiten.settings.secrets import DEVELOPMENT_SECRET_FILE, auth_secret_file
from kaiten.settings.snapshot import Snapshot, memory_file

# Paths that workers must find although they may have another working directory.
_PATHS = (
    ("auth", "secret_file"),
    ("signatures", "private_key"),
    ("signatures", "public_key"),
    ("signatures", "python"),
    ("tls", "certificate"),
    ("tls", "private_key"),
    ("tls", "client_ca"),
    ("logging", "folder"),
)
_Sections = defaultdict[str, dict[str, object]]


def hand_down_settings(
    settings: Settings,
    holders: object,
    devices: Sequence[str] = (),
    sockets: Path | None = None,
    models: Mapping[str, Path | None] = MappingProxyType({}),
    workers: int = 1,
) -> bool:
    """Give child processes a snapshot of the settings in place of the environment and the files.

    So all of them, later replacements included, have the same settings, secrets and key files. The
    snapshot also has absolute paths, since a worker that serves a bento has the bento's folder as
    its working directory. It adds the threads of each worker, the CUDA ``devices``, the ``sockets``
    of the device processes, and the ``models`` with the folders of their baselines. Otherwise a
    promotion or a validation could make two workers differ. ``holders`` is the number of processes
    that hold the models, as ``cpus.process_count`` accepts it.

    Returns False if /proc still shows the secrets that this process was started with.
    """
    sections = _Sections(dict)
    if devices:
        set_cuda_visible_devices(devices)
        if settings.runners.device == "auto":
            # A worker that finds no device any more must fail instead of serving from a CPU.
            sections["runners"]["device"] = "cuda"
    sections["runners"]["threads"] = threads_per_holder(settings, holders)
    if sockets is not None:
        sections["runners"]["sockets"] = sockets
    if models:
        reports = {tag: folder.name if folder else "" for tag, folder in models.items()}
        sections["serving"] |= {"models": [*models], "reports": reports}
    _set_absolute_paths(sections, settings)
    if secret_file := auth_secret_file(settings.auth.secret_file):
        # Workers follow the file, and know KAITEN_SECRETS no more.
        sections["auth"] |= {"secret": None, "secret_file": secret_file}
    values = settings.model_dump(exclude_unset=True) | {"home": settings.home.resolve()}
    for section, fields in sections.items():
        values[section] = values.get(section, {}) | fields
    files = {str(path): path.read_bytes() for path in _key_files(settings)}
    erased = remove_settings_variables()
    Snapshot(values, files, workers, memory_file()).publish()
    return erased


def remove_settings_variables() -> bool:
    """Remove the settings from this process's environment, so that its children inherit none.

    Returns False if /proc still shows them.
    """
    sections = {*Settings.model_fields, "config", "secrets"}
    prefix = PREFIX.lower()
    # In any case: pydantic takes kaiten_auth__secret for KAITEN_AUTH__SECRET.
    return remove_variables(
        {
            name
            for name in os.environ
            if name.lower().startswith(prefix)
            and name.lower().removeprefix(prefix).split("__")[0] in sections
        }
    )


def threads_per_holder(settings: Settings, holders: object) -> int:
    """Return the CPU threads of each process that holds models, one of ``holders`` processes."""
    return settings.runners.threads or cores_per_process(holders)


def with_pseudonym_key(settings: Settings, key: str) -> Settings:
    """Return the settings with one key for all workers, so that their logs agree on pseudonyms."""
    logging = settings.logging.model_copy(update={"pseudonym_key": SecretStr(key)})
    return settings.model_copy(update={"logging": logging})


def with_credentials_copy(settings: Settings, file: Path) -> Settings:
    """Return the settings with the file to which workers copy the credentials that they know."""
    state = settings.state.model_copy(update={"credentials_copy": file})
    return settings.model_copy(update={"state": state})


def _key_files(settings: Settings) -> list[Path]:
    """Return the existing files that hold keys of tokens, by the paths that workers use."""
    auth = settings.auth
    configured = [auth_secret_file(auth.secret_file)]
    configured += [issuer.secret_file or issuer.public_key_file for issuer in auth.issuers]
    development = settings.home.resolve() / DEVELOPMENT_SECRET_FILE
    files = [development, *(file.absolute() for file in configured if file is not None)]
    # The code that needs a missing file reports it.
    return [file for file in files if file.is_file()]


def _set_absolute_paths(sections: _Sections, settings: Settings) -> None:
    for section, key in _PATHS:
        path: Path | None = getattr(getattr(settings, section), key)
        if path is not None:
            # Not resolved: the Python of a virtual environment is a link out of it.
            sections[section][key] = path.absolute()
    target = settings.profiles.target
    if target is not None and "://" not in target:
        sections["profiles"]["target"] = Path(target).absolute()
    if settings.auth.issuers:
        sections["auth"]["issuers"] = [*map(_with_absolute_paths, settings.auth.issuers)]


def _with_absolute_paths(issuer: IssuerSettings) -> dict[str, Any]:
    fields = issuer.model_dump(mode="json", exclude_none=True)
    return {
        name: str(Path(value).absolute()) if name.endswith("_file") else value
        for name, value in fields.items()
    }
