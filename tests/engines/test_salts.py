"""Names for tenants and sessions."""

import re

from flowserve.engines.salts import Salts


def test_names_are_of_one_form_and_need_the_secret() -> None:
    salts, same, other = Salts(b"secret"), Salts(b"secret"), Salts(b"other")
    names = [salts.of(tenant) for tenant in ("", "a", "b", "a" * 999, "\ud800")]
    names += [salts.session("a", "s"), salts.session("b", "s"), salts.session("", "a")]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_=-]{44}", name) for name in names)
    assert salts.of("a") == same.of("a") != other.of("a")
    assert salts.session("a", "s") == same.session("a", "s") != other.session("a", "s")
    assert Salts().of("a") != Salts().of("a"), "without a secret there is a random one"


def test_a_salt_leads_back_to_its_tenant_where_it_was_made() -> None:
    salts, other = Salts(b"secret"), Salts(b"other")
    assert salts.tenant(salts.of("a")) == "a"
    assert salts.tenant(other.of("a")) is None


def test_parts_of_a_name_cannot_be_shifted() -> None:
    salts = Salts(b"secret")
    assert salts.session("a", "bc") != salts.session("ab", "c")
    assert salts.session("a\0b", "c") != salts.session("a", "b\0c")
