"""Tokens that are none, or not quite, and some that say odd things under a good signature."""

import base64
import hashlib
import hmac
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# As they stand in JSON, some of them in no JSON.
_VALUES = (
    *("null", "true", "-1", "0", "1.5", "1e400", "-1e400", "NaN", "Infinity", "1" + "0" * 400),
    *("9" * 5000, '""', '"1"', '"soon"', "[]", "{}", '["exp"]', '["predict"]', '{"a": {"b": []}}'),
    *('"\\ud800"', '"\\u0000"', '"\\u202e\u00e9\U0001f600"', '"' + "a" * 3000 + '"', "[" * 2000),
    *('[{"kty": "oct", "k": "AAAA"}]', '"../../../../dev/null"', '"\' OR 1=1 --"', "08", "'a'"),
    *('"http://127.0.0.1:9/keys.json"', '"file:///etc/passwd"', '"kaiten"', '"predict predict:a"'),
)
_ALGORITHMS = (
    *("none", "None", "NONE", "nOnE", "HS256", "hs256", "HS384", "HS512", "RS256", "ES256"),
    *("PS256", "EdDSA", "ES256K", "dir", "RSA-OAEP", "", "HS256\\u0000"),
)
_HEADER = {"alg": '"HS256"', "typ": '"JWT"'}
_HEADER_NAMES = (
    "alg",
    "typ",
    "kid",
    "crit",
    "jku",
    "jwk",
    "x5u",
    "x5c",
    "cty",
    "zip",
    "b64",
    "iss",
)
_CLAIMS = {
    "iss": '"kaiten"',
    "aud": '"kaiten"',
    "sub": '"fuzz"',
    "scope": '"predict"',
    "exp": "4102444800",
}
_CLAIM_NAMES = (*_CLAIMS, "nbf", "iat", "jti", "act", "cnf", "__class__", "")
_ODD_TEXTS = (
    b".",
    b"..",
    b"...",
    b" ",
    b"=",
    b"==",
    b"-_",
    b"+/",
    b"%2e",
    b"\xff",
    b"\xc3\xa9",
    b"\t",
)


@dataclass(frozen=True)
class Forgery:
    """A token; ``signed`` if its words are signed by the server's own secret."""

    kind: str
    token: bytes
    signed: bool = False


@dataclass
class Forger:
    """Makes one token after another; the same chance makes the same ones."""

    chance: random.Random
    secret: bytes

    def __iter__(self) -> Iterator[Forgery]:
        """Yield forgeries without an end."""
        kinds: Sequence[Callable[[], Forgery]] = [
            self._noise,
            self._text,
            self._dots,
            self._edit,
            self._signature,
            self._algorithm,
            self._header,
            self._claims,
            self._no_object,
            self._signed_claims,
            self._signed_header,
        ]
        while True:
            forgery = self.chance.choice(kinds)()
            # They would end the header, which is another test.
            token = forgery.token.translate(None, b"\r\n\0")
            yield Forgery(forgery.kind, token, forgery.signed)

    def _noise(self) -> Forgery:
        size = self.chance.choice((0, 1, 10, 300, 9000))
        return Forgery("noise", self.chance.randbytes(size))

    def _text(self) -> Forgery:
        parts = [_encoded(self.chance.randbytes(self.chance.randrange(200))) for _ in range(3)]
        return Forgery("noise in base64", b".".join(parts))

    def _dots(self) -> Forgery:
        parts = self._good().split(b".") * 2
        count = self.chance.choice((0, 1, 2, 4, 5, 6))
        token = b".".join(self.chance.choices(parts, k=count))
        return Forgery("dots", self.chance.choice((token, token + b".", b"." * 5000)))

    def _edit(self) -> Forgery:
        token = self._good()
        words = token.rpartition(b".")[0]
        at = self.chance.randrange(len(token))
        to = at + self.chance.choice((0, 0, 1, 5))
        token = token[:at] + self.chance.choice(_ODD_TEXTS) + token[to:]
        # base64 has more than one spelling of the same signature.
        return Forgery("edited", token, signed=token.rpartition(b".")[0] == words)

    def _signature(self) -> Forgery:
        words, _, signature = self._good().rpartition(b".")
        cut = signature[: self.chance.randrange(len(signature))]
        other = _encoded(self.chance.randbytes(self.chance.choice((16, 32, 64, 256))))
        return Forgery("signature", words + b"." + self.chance.choice((cut, other)))

    def _algorithm(self) -> Forgery:
        name = self.chance.choice(_ALGORITHMS)
        header = _object(_HEADER | {"alg": f'"{name}"'})
        secret = self.chance.choice((b"", b"kaiten", b"\0" * 32))
        return Forgery("algorithm", _token(header, _object(_CLAIMS), secret))

    def _header(self) -> Forgery:
        return Forgery("header", _token(self._odd(_HEADER, _HEADER_NAMES), _object(_CLAIMS), b"x"))

    def _claims(self) -> Forgery:
        return Forgery("claims", _token(_object(_HEADER), self._odd(_CLAIMS, _CLAIM_NAMES), b"x"))

    def _no_object(self) -> Forgery:
        header, claims = (self.chance.choice(_VALUES).encode() for _ in range(2))
        return Forgery("no object", _token(header, claims, self.secret), signed=True)

    def _signed_claims(self) -> Forgery:
        claims = self._odd(_CLAIMS, _CLAIM_NAMES)
        return Forgery("signed claims", _token(_object(_HEADER), claims, self.secret), signed=True)

    def _signed_header(self) -> Forgery:
        header = self._odd(_HEADER, _HEADER_NAMES)
        token = _token(header, _object(_CLAIMS), self.secret)
        return Forgery("signed header", token, signed=True)

    def _good(self) -> bytes:
        return _token(_object(_HEADER), _object(_CLAIMS), self.secret)

    def _odd(self, usual: dict[str, str], names: Sequence[str]) -> bytes:
        """Return an object with some unexpected values, maybe no longer JSON."""
        changed = dict(usual)
        for name in self.chance.sample(names, self.chance.choice((1, 1, 2, 4))):
            changed[name] = self.chance.choice(_VALUES)
        text = _object(changed)
        spoilt = (b"\xef\xbb\xbf" + text, text[:-1], text + b"{}", text.decode().encode("utf-16"))
        return self.chance.choice((text, text, text, text, *spoilt, text[:1] + text[1:-1] * 2))


def _object(values: dict[str, str]) -> bytes:
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}").encode()


def _encoded(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def _token(header: bytes, claims: bytes, secret: bytes) -> bytes:
    words = _encoded(header) + b"." + _encoded(claims)
    return words + b"." + _encoded(hmac.digest(secret, words, hashlib.sha256))
