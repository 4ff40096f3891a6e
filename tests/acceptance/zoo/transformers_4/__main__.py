"""Write the archive of tokenizers that the tests unpack."""

import tempfile
from pathlib import Path

from tests.acceptance.zoo import transformers_4
from tests.acceptance.zoo.tokenizers import Vocabularies

if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="kaiten-") as folder:
        saved = Path(folder, "saved")
        transformers_4.save(Vocabularies(Path(folder, "vocabularies")), saved)
        transformers_4.pack(saved)
