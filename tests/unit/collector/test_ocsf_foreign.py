"""Our OCSF events, judged by another program's JSON Schema of the whole published schema (make test-interop)."""

import importlib.resources
import json

import pytest
from test_shapes import COMMON, KNOWN

from edgeguard.collector import ocsf

jsonschema = pytest.importorskip("jsonschema", reason="only in the environment of make test-interop")
foreign = pytest.importorskip("ocsf_json_schema.embedded", reason="only in the environment of make test-interop")


@pytest.fixture(scope="module")
def schemas():
    text = (importlib.resources.files("ocsf_json_schema") / "ocsf/1.8.0.json").read_text()
    return foreign.OcsfJsonSchemaEmbedded(json.loads(text))


@pytest.mark.parametrize(("kind", "fields", "class_uid", "_type", "_expected"), KNOWN)
def test_another_reading_of_the_schema_agrees(schemas, kind, fields, class_uid, _type, _expected):
    event = ocsf.event(COMMON, {"type": kind, "severity": "high", **fields})
    name = schemas.lookup_class_name_from_uid(class_uid)
    schema = schemas.get_class_schema(name, event["metadata"]["profiles"])
    checker = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in checker.iter_errors(event)] == []
    del event["metadata"]
    assert list(checker.iter_errors(event))
