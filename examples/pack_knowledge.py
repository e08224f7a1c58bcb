"""Pack what a teacher knows about some texts into bytes, read it again, and see what the bytes cost and lose.

Distributions travel instead of a model: of each, the likeliest tokens up to a share of the mass, and their
log-probabilities in steps. A damaged packet, or one for another tokenizer, is refused.
"""

from __future__ import annotations

import numpy as np

from consort.align import SparseRows, Vocabulary
from consort.config import RuntimeConfig, TuneConfig
from consort.errors import PacketError
from consort.federated.packets import decode_knowledge, encode_knowledge
from consort.models.local import load_model
from consort.models.zoo import zoo_dir
from consort.training.data import Sample
from consort.training.lessons import Learner
from consort.training.mutual import knowledge_of
from consort.types import Message

STEP_NATS = 0.1
TEXTS = {
    "Name the intent of this message to the bank.\nHello, my card is gone.": "lost card",
    "Report this message to the shop in one sentence.\nMy parcel is open.": "A parcel has arrived open.",
}


def main() -> None:
    """Ask the teacher, pack, read, compare, and be refused twice."""
    teacher = load_model(zoo_dir("cloud"), runtime=RuntimeConfig(device="cpu"))
    vocabulary = teacher.vocabulary
    samples = [Sample((Message("user", asked),), answer) for asked, answer in TEXTS.items()]
    examples = knowledge_of(Learner(teacher), samples, TuneConfig(top_k=64))
    said = {str(key): each.knowledge.rows for key, each in enumerate(examples) if each.knowledge}

    packet = encode_knowledge(said, tokenizer_sha256=vocabulary.sha256, mass=0.97, step_nats=STEP_NATS)
    read = decode_knowledge(packet, tokenizer_sha256=vocabulary.sha256, vocabulary_size=vocabulary.size)

    sent_RV, read_RV = (dense(texts, vocabulary.size) for texts in (said, read))
    kept_RV = read_RV > 0
    off = np.abs(np.log(read_RV[kept_RV]) - np.log(sent_RV[kept_RV])).max()
    print(f"{len(sent_RV)} distributions over {vocabulary.size} tokens: {4 * sent_RV.size} bytes in float32")
    print(f"packet: {len(packet)} bytes, {kept_RV.sum(1).mean():.1f} tokens a distribution")
    print(f"probability kept: {sent_RV[kept_RV].sum() / len(sent_RV):.3f}")
    print(f"largest error: {off:.3f} nats, of steps of {STEP_NATS}")

    damaged = bytearray(packet)
    damaged[len(packet) // 2] ^= 1
    other = Vocabulary.of(zoo_dir("edge-gpt2"))
    for why, content, reader in (
        ("one bit flipped", damaged, vocabulary),
        ("other tokenizer", packet, other),
    ):
        try:
            decode_knowledge(bytes(content), tokenizer_sha256=reader.sha256, vocabulary_size=reader.size)
        except PacketError as error:
            print(f"{why}: refused, {error.what}")


def dense(texts: dict[str, SparseRows], columns: int) -> np.ndarray:
    """All rows of all texts as one matrix; the rest, which has no name, is left out."""
    matrices = []
    for rows in texts.values():
        matrix = np.zeros((len(rows.ids), columns))
        np.add.at(matrix, (np.arange(len(matrix))[:, None], rows.ids), rows.probs)  # unused slots add 0
        matrices.append(matrix)
    return np.concatenate(matrices)


if __name__ == "__main__":
    main()
