"""The files of a new project: settings, an example of a client, a Compose file and next steps."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from kaiten import model_tags

_SETTINGS = """\
# The settings of this project. Settings that are not here have their defaults: `kaiten config show`
# lists all, and `kaiten config explain KEY` says how to choose one.

serving:
  # Change the version after `kaiten validate`, or write $name for the version in production.
  models: [$model_tag]

validation:
  # The last validation measured $accuracy. Set it a little below your best version.
  min_accuracy: 0.7
  # The last validation measured $macro_f1. Set it a little below your best version.
  min_macro_f1: 0.6
"""
_CLIENT = '''\
"""Ask the server for the labels of texts: TOKEN=... python3 client.py "a text" "another".

It needs only Python. The package kaiten_client has retries, deadlines and types.
"""

import json
import os
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

# A proxy for the internet cannot reach a server on this machine.
os.environ.setdefault("no_proxy", "127.0.0.1,localhost")
URL = os.environ.get("URL", "http://127.0.0.1:3000")
texts = sys.argv[1:] or ["My parcel has not arrived yet, where is it?"]
request = Request(
    f"{URL}/api/v2/predict",
    json.dumps({"inputs": texts}).encode(),
    {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ['TOKEN']}"},
)
try:
    with urlopen(request, timeout=30) as response:
        predictions = json.load(response)["predictions"]
except HTTPError as error:
    sys.exit(error.read().decode())
for text, prediction in zip(texts, predictions, strict=True):
    print(f"{prediction['score']:.2f}  {prediction['label']}  {text}")
'''
_COMPOSE = """\
# $model_tag on one host, in the image of README.md. Other machines need a proxy with TLS before it.
name: $compose_name

services:
  kaiten:
    image: $${KAITEN_IMAGE:?set KAITEN_IMAGE to an image of kaiten containerize}
    restart: unless-stopped
    read_only: true
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    logging:
      driver: json-file
      options: {max-size: 10m, max-file: "5"}
    user: "1034:1034"
    environment:
      KAITEN_CONFIG: /etc/kaiten.yaml
    secrets: [kaiten_auth__secret]
    volumes: ["./kaiten.yaml:/etc/kaiten.yaml:ro", "kaiten-state:/var/lib/kaiten"]
    tmpfs: ["/tmp:size=64m,mode=1777"]
    ports: ["127.0.0.1:$${KAITEN_PORT:-3000}:3000"]
    healthcheck:
      test:
        - CMD-SHELL
        - >-
          python -c "import urllib.request as r;
          r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:3000/readyz', timeout=5)"
      interval: 15s
      timeout: 10s
      retries: 3
      start_period: 120s
    # The requests under way have serving.request_timeout_s, after serving.drain_s.
    stop_grace_period: 45s
    mem_limit: 2g
    pids_limit: 512

volumes:
  kaiten-state:

secrets:
  kaiten_auth__secret: {file: ./secrets/kaiten_auth__secret}
"""
_README = """\
# $name

A text classifier, served by Kaiten. `kaiten init` has registered and validated $model_tag.

## Serve it on this machine

```
kaiten serve
# In a second terminal:
TOKEN=$$(kaiten token create --subject me --scope predict) python3 client.py "a text"
```

## Release it

This needs Kaiten from a checkout, with the extra `build`, and Docker:

```
kaiten promote $model_tag --to staging --reason "first release"
kaiten build                # prints the bento's tag
kaiten containerize BENTO --tag $compose_name:$version
mkdir -m 700 secrets
openssl rand -hex 32 > secrets/kaiten_auth__secret
chmod 644 secrets/kaiten_auth__secret
echo KAITEN_IMAGE=$compose_name:$version > .env
docker compose up --detach --wait
docker compose exec -T kaiten kaiten token create --subject me --scope predict
```

`secrets/kaiten_auth__secret` signs the tokens. Other users cannot enter its folder, and
`.gitignore` keeps it out of git.

## Make a new version

```
kaiten register FOLDER --name $name --task text-classification --bump auto
kaiten validate $name:VERSION --data $data$options
```

Then name the version in `kaiten.yaml`, and release it in the same way.
"""
_GITIGNORE = ".env\n.kaiten/\nsecrets/\n"
FILE_NAMES = ("kaiten.yaml", "client.py", "compose.yaml", "README.md", ".gitignore")


@dataclass(frozen=True, slots=True)
class ProjectFacts:
    """What the files say of a version and its validation.

    ``data`` is the absolute path of the rows, and ``options`` are those of `kaiten validate` that
    the rows need, quoted for a shell.
    """

    model_tag: str
    data: Path
    accuracy: float
    macro_f1: float
    options: str = ""


def render_files(facts: ProjectFacts) -> Mapping[str, str]:
    """Return the content of each file by its name."""
    name, version = model_tags.split(facts.model_tag)
    values = {
        "model_tag": facts.model_tag,
        "name": name,
        "version": version,
        "data": shlex.quote(str(facts.data)),
        "options": f" {facts.options}" if facts.options else "",
        "accuracy": f"{facts.accuracy:.3f}",
        "macro_f1": f"{facts.macro_f1:.3f}",
        # Compose and registries allow fewer characters than a model's name.
        "compose_name": re.sub(r"[._-]+", "-", name),
    }
    texts = (_SETTINGS, _CLIENT, _COMPOSE, _README, _GITIGNORE)
    return {
        file: text if file == "client.py" else Template(text).substitute(values)
        for file, text in zip(FILE_NAMES, texts, strict=True)
    }
