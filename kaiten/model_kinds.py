"""The kinds of models that Kaiten does not serve yet, and how each is recognised.

Registration, validation and the API recognise a kind by its task, its files, its data or a request
for it, and refuse it in the same words. README.md lists the same kinds.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

SERVES = "it serves text classifiers, which choose one of several labels for a text"


@dataclass(frozen=True, slots=True)
class ModelKind:
    """A kind of model that is not served; ``noun`` completes "Kaiten does not serve ... yet".

    The other fields are words, separated by spaces. ``tasks`` are names of its task, as hubs and
    users write it, in lower case with hyphens. ``columns`` are those of its data, ``fields`` those
    of requests to other servers of such models, and ``paths`` the last parts of such a server's
    paths. ``content_types`` are types of such requests, or the first halves of types.
    ``architectures`` is a regular expression for names of transformers' classes.
    """

    noun: str
    tasks: str
    architectures: str = ""
    columns: str = ""
    fields: str = ""
    paths: str = ""
    content_types: str = ""

    @property
    def refusal(self) -> str:
        """A clause that says that the kind is not served, and which models are."""
        return f"Kaiten does not serve {self.noun} yet; {SERVES}"


EMBEDDINGS = ModelKind(
    "embedding models",
    tasks="embed embedding embeddings feature-extraction sentence-embedding sentence-embeddings "
    "sentence-similarity sentence-transformers similarity text-embedding text-embeddings",
    architectures=r"\w+ForTextEncoding",
    fields="dimensions encoding_format sentences source_sentence",
    paths="embed embeddings",
)
RERANKERS = ModelKind(
    "rerankers",
    tasks="cross-encoder rerank reranker reranking text-ranking",
    columns="documents passages query",
    fields="documents passages query",
    paths="rerank",
)
TEXT_PAIRS = ModelKind(
    "models of text pairs",
    tasks="natural-language-inference nli sentence-pair sentence-pairs text-pairs zero-shot "
    "zero-shot-classification",
    architectures=r"\w+For(MultipleChoice|NextSentencePrediction)",
    columns="hypothesis premise sentence1 sentence2 text_pair",
    fields="candidate_labels hypothesis premise text_pair",
)
TOKENS = ModelKind(
    "token classifiers",
    tasks="entities named-entity-recognition ner pos-tagging token-classification",
    architectures=r"\w+ForTokenClassification",
    columns="ner_tags pos_tags tokens",
    fields="aggregation_strategy tokens",
)
MULTI_LABEL = ModelKind(
    "multi-label classifiers",
    tasks="multi-label multi-label-classification multilabel-classification",
)
REGRESSION = ModelKind("regression models", tasks="regression text-regression")
QUESTIONS = ModelKind(
    "question answering models",
    tasks="extractive-question-answering qa question-answering",
    architectures=r"\w+ForQuestionAnswering",
    columns="context question",
    fields="context question",
)
GENERATION = ModelKind(
    "text generation models",
    tasks="chat conversational generation llm summarization text-generation text2text-generation "
    "translation",
    architectures=r"\w+(ForCausalLM|ForConditionalGeneration|LMHeadModel)",
    columns="messages",
    fields="max_new_tokens max_tokens messages prompt temperature",
    paths="completions generate generate_stream",
)
TABLES = ModelKind(
    "tabular models",
    tasks="catboost lightgbm scikit-learn sklearn table tables tabular tabular-classification "
    "tabular-regression xgboost",
    fields="columns dataframe_records dataframe_split feature features instances ndarray rows",
    content_types="text/csv",
)
IMAGES = ModelKind(
    "image models",
    tasks="image image-classification image-feature-extraction image-segmentation images "
    "object-detection vision zero-shot-image-classification",
    architectures=r"(ViT|DeiT|Beit|Swin|ConvNext|ResNet|Dinov2|CLIP|Siglip|MobileNet|MobileViT|"
    r"EfficientNet)\w*|\w+For(ImageClassification|MaskedImageModeling|ObjectDetection|"
    r"\w*Segmentation)",
    columns="image images img pixel_values",
    fields="b64_image image image_base64 image_url images pixel_values",
    content_types="image",
)
AUDIO = ModelKind(
    "audio models",
    tasks="asr audio audio-classification automatic-speech-recognition speech speech-to-text "
    "text-to-speech",
    architectures=r"(Wav2Vec2|Hubert|WavLM|UniSpeech|SEW|Whisper|Data2VecAudio)\w*|"
    r"\w+For(CTC|AudioClassification|AudioFrameClassification|SpeechSeq2Seq|XVector)",
    columns="audio",
    fields="audio audio_url input_features input_values",
    content_types="audio",
)
UNSERVED = (
    EMBEDDINGS,
    RERANKERS,
    TEXT_PAIRS,
    TOKENS,
    MULTI_LABEL,
    REGRESSION,
    QUESTIONS,
    GENERATION,
    TABLES,
    IMAGES,
    AUDIO,
)


def kind_of_task(task: str) -> ModelKind | None:
    """Return the kind that is not served and has a task of this name."""
    name = re.sub(r"[\s_]+", "-", task.strip().lower())
    return next((kind for kind in UNSERVED if name in kind.tasks.split()), None)


def kind_of_architecture(architecture: str) -> ModelKind | None:
    """Return the kind that is not served and has this class of transformers."""
    kinds = (kind for kind in UNSERVED if kind.architectures)
    return next((kind for kind in kinds if re.fullmatch(kind.architectures, architecture)), None)


def kind_of_columns(columns: Iterable[str]) -> ModelKind | None:
    """Return the kind that is not served and whose data have one of these columns."""
    names = {column.lower() for column in columns}
    return next((kind for kind in UNSERVED if names.intersection(kind.columns.split())), None)


def kind_of_field(field: object) -> ModelKind | None:
    """Return the kind that is not served and whose requests have such a field."""
    return next((kind for kind in UNSERVED if field in kind.fields.split()), None)


def kind_of_path(path: str) -> ModelKind | None:
    """Return the kind that is not served and whose servers have such a path."""
    last = path.rpartition("/")[2]
    return next((kind for kind in UNSERVED if last in kind.paths.split()), None)


def kind_of_content_type(content_type: str) -> ModelKind | None:
    """Return the kind that is not served and whose requests have such a type."""
    names = {content_type, content_type.partition("/")[0]}
    return next((kind for kind in UNSERVED if names.intersection(kind.content_types.split())), None)
