"""Tokens and key sets in the forms that the most used providers write, by their documentation.

Keys, ids and names are made here; the members and claims, and their types, are theirs.
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.auth.factory import build
from gateway.auth.verifier import TokenRejected, Verified
from kaiten.settings.loader import load_settings
from kaiten.settings.models import AuthSettings, IssuerSettings
from tests.unit.gateway.auth.mint import Json, jwk, jwks, token

_ID = "11111111-2222-3333-4444-555555555555"
_MISSING = "MissingRequiredClaimError"
_TENANT = "99999999-8888-7777-6666-555555555555"
_X5: Json = {"x5t": "dGh1bWI", "x5c": ["MIIC"]}
_NO = {"scope": None, "jti": None}


@dataclass(frozen=True)
class Provider:
    """What an operator sets, what a token holds, and what a caller may do by it."""

    settings: Json
    claims: Json
    scopes: set[str]
    subject: str = "alice"
    kind: str = "RS256"
    header: Json = field(default_factory=dict)
    keys: tuple[Json, ...] = (jwk("RS256", use="sig", alg="RS256"),)


_ENTRA = {
    "issuer": f"https://login.microsoftonline.com/{_TENANT}/v2.0",
    "audience": _ID,
    "scope_claims": ["scp", "roles"],
    "scope_map": {"Texts.Predict": ["predict"], "Texts.Operate": ["ops"]},
}
# No alg, and keys of other signing purposes beside it; the header has x5t.
_ENTRA_KEYS = (
    jwk("RS256", use="sig", **_X5, issuer="https://login.microsoftonline.com/{tenantid}/v2.0"),
    jwk("RS256#2", kid="2", use="sig", **_X5),
)
_KEYCLOAK = {"issuer": "https://sso.example.org/realms/team", "audience": "kaiten"}
# One key to sign with and one to encrypt to, both with certificates.
_KEYCLOAK_KEYS = (
    jwk("RS256#2", kid="enc", use="enc", alg="RSA-OAEP", **_X5),
    jwk("RS256", use="sig", alg="RS256", **_X5),
)
_COGNITO = {
    "issuer": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI",
    "audience": "5example1client2id3",
    "audience_claim": "client_id",
}

PROVIDERS = {
    "Entra ID, an application": Provider(
        _ENTRA,
        {"aud": _ID, "sub": _ID, "oid": _ID, "azp": _ID, "roles": ["Texts.Predict", "Other"],
         "tid": _TENANT, "ver": "2.0", "idtyp": "app", "uti": "abc", **_NO},
        {"predict"}, _ID, header={"x5t": "dGh1bWI"}, keys=_ENTRA_KEYS,
    ),
    "Entra ID, for a user": Provider(
        _ENTRA,
        {"scp": "Texts.Predict Texts.Operate", "aud": _ID, "name": "A", "ver": "2.0", **_NO},
        {"predict", "ops"}, keys=_ENTRA_KEYS,
    ),
    "Auth0, permissions of an API": Provider(
        {"issuer": "https://team.eu.auth0.com/", "audience": "https://kaiten.example.org",
         "scope_claims": "permissions"},
        {"aud": ["https://kaiten.example.org", "https://team.eu.auth0.com/userinfo"],
         "azp": "client", "scope": "openid profile", "permissions": ["predict"], "jti": None},
        {"predict"}, header={"typ": "at+jwt"}, keys=(jwk("RS256", use="sig", alg="RS256", **_X5),),
    ),
    "Auth0, a claim whose name is a URL": Provider(
        {"issuer": "https://team.eu.auth0.com/", "audience": "kaiten",
         "scope_claims": ["https://example.org/roles"], "scope_map": {"analyst": ["predict"]}},
        {"https://example.org/roles": ["analyst"], "scope": "openid", "gty": "client-credentials",
         "sub": "client@clients"},
        {"predict"}, "client@clients",
    ),
    "Okta": Provider(
        {"issuer": "https://team.okta.com/oauth2/default", "audience": "api://default"},
        {"aud": "api://default", "scope": None, "scp": ["predict", "ops"], "ver": 1, "cid": "0oa1",
         "uid": "00u1", "jti": "AT.abc"},
        {"predict", "ops"}, header={"typ": None},
    ),
    "Keycloak, roles of the realm": Provider(
        {**_KEYCLOAK, "scope_claims": "realm_access.roles"},
        {"aud": ["kaiten", "account"], "azp": "job", "typ": "Bearer", "acr": "1",
         "realm_access": {"roles": ["predict", "offline_access"]}, "scope": "email profile",
         "resource_access": {"account": {"roles": ["manage-account"]}}},
        {"predict", "offline_access"}, keys=_KEYCLOAK_KEYS,
    ),
    "Keycloak, roles of a client whose name has a dot": Provider(
        {**_KEYCLOAK, "scope_claims": [["resource_access", "kaiten.prod", "roles"]]},
        {"resource_access": {"kaiten.prod": {"roles": ["predict", "ops"]}},
         "scope": "email profile"},
        {"predict", "ops"}, keys=_KEYCLOAK_KEYS,
    ),
    "Cognito, scopes of a resource server": Provider(
        {**_COGNITO, "scope_map": {"kaiten/predict": ["predict"]}},
        {"aud": None, "client_id": "5example1client2id3", "token_use": "access",
         "scope": "kaiten/predict openid", "version": 2},
        {"predict"}, header={"typ": None},
    ),
    "Cognito, groups": Provider(
        {**_COGNITO, "scope_claims": "cognito:groups", "scope_map": {"ml-users": ["predict"]}},
        {"aud": None, "client_id": "5example1client2id3", "token_use": "access",
         "scope": "aws.cognito.signin.user.admin", "cognito:groups": ["ml-users"]},
        {"predict"},
    ),
    "Google, a service account": Provider(
        {"issuer": "https://accounts.google.com", "audience": "https://kaiten.example.org",
         "scope_claims": "sub", "scope_map": {"104372000000000000000": ["predict:intent"]}},
        {"aud": "https://kaiten.example.org", "azp": "104372000000000000000",
         "sub": "104372000000000000000", "email": "job@team.iam.gserviceaccount.com",
         "email_verified": True, **_NO},
        {"predict:intent"}, "104372000000000000000",
        keys=(jwk("RS256", use="sig"), jwk("RS256#2", kid="2", use="sig", alg="RS256")),
    ),
    "Firebase, custom claims": Provider(
        {"issuer": "https://securetoken.google.com/team", "audience": "team",
         "scope_claims": "kaiten"},
        {"aud": "team", "auth_time": 1, "user_id": "alice", "kaiten": ["predict"],
         "firebase": {"identities": {}, "sign_in_provider": "custom"}, **_NO},
        {"predict"},
    ),
    "Spring Authorization Server": Provider(
        {"issuer": "https://auth.example.org", "audience": "kaiten"},
        {"scope": ["predict", "ops"], "nbf": int(time.time()) - 1},
        {"predict", "ops"}, keys=(jwk("RS256", kid="1"),),
    ),
    "IdentityServer": Provider(
        {"issuer": "https://ids.example.org", "audience": "kaiten"},
        {"scope": ["predict"], "client_id": "job", "nbf": int(time.time()) - 1},
        {"predict"}, kind="PS256", header={"typ": "at+jwt"},
        # One key, listed for each algorithm.
        keys=(jwk("RS256", use="sig", alg="RS256"), jwk("RS256", use="sig", alg="PS256")),
    ),
}  # fmt: skip


async def verify(provider: Provider, **changes: Any) -> Verified:  # noqa: ANN401
    """Return what a token of a provider comes to, by what its settings build."""

    async def fetch(_: str) -> bytes:
        return jwks(*provider.keys)

    issuer = IssuerSettings(jwks_url="https://issuer.example.org/keys", **provider.settings)
    # As workers are given it.
    issuer = IssuerSettings(
        **json.loads(json.dumps(issuer.model_dump(mode="json", exclude_none=True)))
    )
    tokens = build(
        load_settings().model_copy(update={"auth": AuthSettings(issuers=(issuer,))}), None, fetch
    )
    claims = {"iss": issuer.issuer, **provider.claims, **changes}
    provider_token = token(provider.kind, headers=provider.header, **claims)
    return await tokens.authenticator._verifier.verify(provider_token)


@pytest.mark.parametrize("name", PROVIDERS)
async def test_token_of_a_provider_holds_and_allows_what_it_says(name: str) -> None:
    provider = PROVIDERS[name]
    principal = (await verify(provider)).principal
    assert principal.scopes == provider.scopes
    assert principal.subject == provider.subject
    assert principal.issuer == provider.settings["issuer"]


@pytest.mark.parametrize("name", PROVIDERS)
async def test_token_of_a_provider_for_another_audience_is_refused(name: str) -> None:
    provider = PROVIDERS[name]
    claim = provider.settings.get("audience_claim", "aud")
    for other in ("another", ["another"], "", 5):
        with pytest.raises(TokenRejected) as caught:
            await verify(provider, **{claim: other})
        # PyJWT calls an empty one missing.
        expected = "InvalidAudienceError" if other or claim != "aud" else _MISSING
        assert caught.value.fault == expected
    with pytest.raises(TokenRejected) as caught:
        await verify(provider, **{claim: None})
    assert caught.value.fault == _MISSING


@pytest.mark.parametrize("name", PROVIDERS)
async def test_token_of_a_provider_by_another_key_is_refused(name: str) -> None:
    provider = PROVIDERS[name]
    other = Provider(provider.settings, provider.claims, set(), keys=(jwk("RS256#9"),))
    with pytest.raises(TokenRejected) as caught:
        await verify(other)
    assert caught.value.fault == "InvalidSignatureError"


async def test_usual_audience_is_not_taken_for_the_one_that_is_set() -> None:
    with pytest.raises(TokenRejected):
        await verify(PROVIDERS["Cognito, groups"], aud="5example1client2id3", client_id="another")


@pytest.mark.parametrize(
    ("claims", "token_claims", "scopes"),
    [
        ("a.b", {"a": {"b": "predict ops"}}, {"predict", "ops"}),
        # A path is a path, and a name with a dot in it another claim.
        ("a.b", {"a.b": ["predict"]}, set()),
        ([["a.b"]], {"a.b": ["predict"], "a": {"b": ["ops"]}}, {"predict"}),
        ("a.b", {"a": ["b"]}, set()),
        ("a.b", {"a": {"b": {"predict": 1}}}, set()),
        # The usual claims count no more than any other that is not named.
        ("roles", {"scope": "ops", "scp": ["ops"], "roles": ["predict"]}, {"predict"}),
        ("roles", {"scope": "ops"}, set()),
        (["scope", "roles"], {"scope": "ops", "roles": ["predict"]}, {"predict", "ops"}),
        ([], {"scope": ["predict", "ops", 5, ["admin"]]}, {"predict", "ops"}),
        # A name in a list is a whole one.
        ([], {"scope": ["predict ops"]}, {"predict ops"}),
        ([], {"scope": [], "scp": ["predict"]}, set()),
        ("urn:team:roles", {"urn:team:roles": ["predict"]}, {"predict"}),
    ],
)
async def test_claim_is_named_by_its_path(
    claims: object, token_claims: Json, scopes: set[str]
) -> None:
    settings = {"issuer": "https://a.example.org", "audience": "kaiten", "scope_claims": claims}
    provider = Provider(settings, {"scope": None, **token_claims}, scopes)
    assert (await verify(provider)).principal.scopes == scopes


@pytest.mark.parametrize(
    "wrong",
    [
        {"scope_claims": ""},
        {"scope_claims": "a..b"},
        {"scope_claims": [[]]},
        {"scope_claims": 5},
        {"scope_map": {"role": ["root"]}},
        {"scope_map": {"role": "predict"}},
        {"audience_claim": ""},
    ],
)
def test_setting_that_names_nothing_is_refused(wrong: Json) -> None:
    with pytest.raises(ValidationError):
        IssuerSettings(issuer="a", audience="b", jwks_url="https://a/b", **wrong)
