"""What a first attempt looks like: FastAPI around a transformers pipeline."""

import os

from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

app = FastAPI()
classifier = pipeline("text-classification", model=os.environ["MODEL"], device="cpu")


class Body(BaseModel):
    """The texts of one request."""

    texts: list[str]


@app.get("/health")
def health() -> dict[str, str]:
    """Answer once the model is loaded."""
    return {"status": "ok"}


@app.post("/predict")
def predict(body: Body) -> dict[str, list[str]]:
    """Label the texts, on one of FastAPI's threads."""
    batch = int(os.environ["BATCH"])
    predictions = classifier(body.texts, batch_size=batch, truncation=True)
    return {"labels": [row["label"] for row in predictions]}
