"""Sentences to train vocabularies on, and texts to compare models on."""

# ruff: noqa: RUF001  the sentences are of many scripts

from collections.abc import Sequence
from itertools import product

from runners.probe_texts import PROBE_TEXTS

# Subjects and predicates, in several languages and scripts.
_PARTS: Sequence[tuple[Sequence[str], Sequence[str]]] = (
    (
        ("The parcel", "My order", "The invoice", "The new app", "Your courier", "A refund"),
        (
            "has not arrived yet.",
            "was charged twice last week!",
            "shows the wrong address, doesn't it?",
            "cannot be opened on my phone.",
            "costs 12.50 EUR more than before.",
            "came two days late, on the 3rd of May.",
        ),
    ),
    (
        ("Das Paket", "Meine Bestellung", "Die Rechnung", "Der Kundendienst"),
        (
            "ist noch nicht angekommen.",
            "wurde zweimal abgebucht!",
            "enthält die falsche Größe für mich.",
            "kostet 12,50 Euro mehr als früher.",
        ),
    ),
    (
        ("Le colis", "Ma commande", "La facture", "Votre application"),
        ("n'est pas arrivé.", "a été débitée deux fois !", "coûte trop cher, s'il vous plaît."),
    ),
    (
        ("El paquete", "Mi pedido", "La factura", "Su tienda"),
        ("no ha llegado todavía.", "¿se puede cambiar mañana?", "cuesta 12 euros más."),
    ),
    (
        ("Посылка", "Мой заказ", "Счёт", "Приложение"),
        ("ещё не пришла.", "не открывается на телефоне!", "стоит дороже, чем раньше."),
    ),
    (
        ("Το δέμα", "Η παραγγελία", "Ο λογαριασμός"),
        ("δεν έφτασε ακόμα.", "χρεώθηκε δύο φορές!", "είναι πολύ ακριβός;"),
    ),
    (
        ("我的包裹", "订单", "发票"),
        ("还没有到。", "被收了两次费！", "比以前贵了十二元。"),
    ),
    (
        ("荷物は", "注文は", "請求書は"),
        ("まだ届いていません。", "二回請求されました!", "いつ届きますか?"),
    ),
    (
        ("내 소포는", "주문이", "청구서가"),
        ("아직 도착하지 않았어요.", "두 번 결제되었습니다!", "어디에 있나요?"),
    ),
    (
        ("الطرد", "طلبي", "الفاتورة"),
        ("لم يصل بعد.", "تم خصمه مرتين!", "أين هو الآن؟"),
    ),
    (
        ("मेरा पार्सल", "आदेश", "बिल"),
        ("अभी तक नहीं आया।", "दो बार लिया गया!", "कहाँ है?"),
    ),
)


def _blank(text: str) -> str:
    """Return what stands before a text: nothing in Chinese and Japanese."""
    return "" if "\u2e80" < text[0] < "\uac00" else " "


# A word that becomes one token of many characters.
_LONG_WORD = "internationalisation"
CORPUS: tuple[str, ...] = (
    *(
        f"{subject}{_blank(predicate)}{predicate}"
        for subjects, predicates in _PARTS
        for subject, predicate in product(subjects, predicates)
    ),
    *(f"{_LONG_WORD} of {_LONG_WORD}",) * 12,
)
_LONG = (
    "I ordered two pairs of shoes on the 3rd of May and only one of them arrived, in the wrong "
    "colour; the invoice in the box is for somebody else, and nobody answers my letters. "
)
# From one word to far more than any model of the zoo takes.
PLAIN_TEXTS: tuple[str, ...] = (
    "a",
    "?",
    "Hello",
    "refund",
    "Where is my parcel?",
    "my parcel has not arrived yet",
    "The app crashes every time I open the settings page.",
    "I was charged twice for the same order, can you check?",
    "Wie lange dauert die Lieferung nach Österreich?",
    "¿Puedo cambiar la dirección de entrega después de hacer el pedido?",
    "Мой заказ не открывается на телефоне, что делать?",
    "我的包裹在哪里？我等了三天。",
    "荷物はまだ届いていません。いつ届きますか?",
    "लेकिन मेरा पार्सल कहाँ है?",
    "أين طردي من فضلك؟",
    "The invoice no. 48-22913 shows 1,234.50 EUR instead of 12.50 EUR, doesn't it?",
    _LONG.strip(),
    _LONG * 2,
    _LONG * 6,
    "parcel " * 400,
    "無料配送について教えてください。" * 40,
)
# Some of the texts that tokenizers differ on; the ids are compared on all of them.
TEXTS: tuple[str, ...] = (*PLAIN_TEXTS, *PROBE_TEXTS[3::11])


def texts_with(tokens: Sequence[str]) -> list[str]:
    """Return texts that hold a model's special tokens, as a caller can write them."""
    return [
        text
        for token in tokens
        for text in (
            f"Where is {token} my parcel?",
            f"{token}my order was charged twice",
            f"ok {token}",
        )
    ]


# Far over the maximum length, and hard to cut: a tokenizer that is given a part of a text must find
# the same ids as in the whole.
LONG_TEXTS: tuple[str, ...] = (
    "x" * 4000,
    "的" * 3000,
    f"{' ' * 3000}where is my parcel",
    f"{chr(0x200B) * 3000}order",
    "e" + "\u0301" * 3000,
    "\n" * 2000 + "ok" + "\t " * 1500,
    "👨‍👩‍👧‍👦" * 500,
    "!?" * 2000,
    "1234567890" * 400,
    "parcel" * 700,
    "order  refund   " * 300,
    f" {_LONG_WORD}" * 250,
    # Of eight characters a token: a cut falls where the last token that the model takes is.
    *(f"{'a ' * shift}{f'{_LONG_WORD} a a ' * 80}" for shift in range(12)),
    "[MASK]<mask> [SEP]</s>" * 200,
    "ﬃ½ＡＢ" * 800,
    "क्षत्रिय" * 400,
    " ".join(PROBE_TEXTS),
    "".join(reversed(PROBE_TEXTS)),
)
# Texts of which most tokenizers leave nothing.
BLANK_TEXTS: tuple[str, ...] = ("\u200b", "\ufeff\u2060", "\u00ad\u200d")
