"""Whatever is sent to the service, it answers, or says in one line why it does not."""

import json

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st

from tests.serving import small_bundle

EXAMPLES = hypothesis.settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
FEWER = hypothesis.settings(EXAMPLES, max_examples=25)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    path = small_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "a")
    served = small_bundle.serve(path)
    yield served
    served.close()


def post(service, content):
    return small_bundle.run(service, lambda client: client.post("/v1/retrieve", content=content))


def check(answer):
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        told = answer.json()
        assert set(told) == {"error"}
        assert told["error"].strip() and "\n" not in told["error"]


@pytest.mark.parametrize(
    ("user", "status"),
    [
        ({"history": [{"item_id": 1000, "scenario": []}]}, 422),
        ({"history": [{"item_id": 1000, "time": 10**400}]}, 422),
        ({"history": [[1000]]}, 422),
        ({"history": [None, 1.5, "1e3", "\uff11", -(2**63)]}, 200),
        ({"history": [True]}, 422),
        ({"history": [{"item_id": 1000, "scenario": "fed"}]}, 422),
        ({"orders": 10**400}, 422),
        ({"orders": 1e308}, 200),
        ({"time": 1e300}, 422),
        ({"user_id": [1]}, 422),
        ({"user_id": 10**30}, 200),
        ({"user_id": "\ud800"}, 400),
        ({"age": "\0"}, 200),
    ],
)
def test_awkward_values_are_answered_or_refused(service, user, status):
    got = post(service, json.dumps({"users": [user]}))
    check(got)
    assert got.status_code == status


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, -(2**63), 10**30, 10**400, 1000, 1005]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["feed", "deals", "seen", "shown", "b1", "red", "all", "1003", "\ud800", "\0"]),
)
NAMES = ("user_id", "age", "orders", "history", "shown", "time", "item_id", "scenario", "brand")
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=4),
    ),
    max_leaves=8,
)
USERS = st.lists(
    st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=4)
    | st.fixed_dictionaries({"history": st.lists(ANYTHING, max_size=4)}),
    max_size=3,
)
OPTIONS = st.dictionaries(
    st.sampled_from(["scenario", "k", "exclude", "allow", "filter", "more"]), ANYTHING, max_size=2
)


@EXAMPLES
@hypothesis.given(users=USERS | ANYTHING, options=OPTIONS)
def test_any_query_is_answered_or_refused(service, users, options):
    check(post(service, json.dumps({"users": users, **options})))


@FEWER
@hypothesis.given(st.binary(max_size=40))
def test_any_bytes_are_refused(service, content):
    check(post(service, content))


@FEWER
@hypothesis.given(depth=st.sampled_from([10, 1000, 100_000]), kind=st.sampled_from("[{"))
def test_any_depth_is_refused(service, depth, kind):
    check(post(service, '{"users": ' + {"[": "[", "{": '{"a":'}[kind] * depth))


ROUTES = [
    ("POST", "/v1/retrieve"),
    ("GET", "/v1/info"),
    ("GET", "/v1/items"),
    ("GET", "/v1/sample_users"),
    ("GET", "/v1/users/{user_id}"),
    ("POST", "/v1/bundle"),
    ("POST", "/v1/bundle/rollback"),
    ("POST", "/v1/shadow"),
    ("DELETE", "/v1/shadow"),
    ("GET", "/v1/compare"),
    ("POST", "/v1/items"),
    ("DELETE", "/v1/items"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def schema(service):
    return schemathesis.openapi.from_asgi("/openapi.json", service.app)


def test_the_document_names_every_route(schema):
    found = [operation.ok() for operation in schema.get_all_operations()]
    assert sorted((one.method.upper(), one.path) for one in found) == sorted(ROUTES)


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_what_the_document_describes_is_answered_or_refused(schema, method, route):
    @FEWER
    @hypothesis.given(case=schema[route][method].as_strategy())
    def run(case):
        check(case.call(headers=small_bundle.BEARER))

    run()
