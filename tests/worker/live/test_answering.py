"""Each live question of the contract is answered by one module, which nothing but its own table says."""

from actstore_api.verbs import VERBS
from actstore_worker.live.answering import ANSWERS
from actstore_worker.live.questions import NamesModel, NamesRun

SERVICES = ("actstore_api.v1.ModelService", "actstore_api.v1.SaeService")


def test_every_live_question_of_the_contract_has_an_answer_and_no_other() -> None:
    asked = {verb.question for verb in VERBS.values() if verb.service in SERVICES}
    assert len(asked) > 10
    assert ANSWERS.keys() == asked


def test_each_question_names_a_model_or_a_run_but_for_the_one_that_needs_none() -> None:
    needs = {question: set(question.__dataclass_fields__) & {"model", "run"} for question in ANSWERS}
    assert {question.__name__: named for question, named in needs.items() if named != {"model"}} == {
        "CheckSae": {"run"},
        "FindNeighbors": set(),
    }
    protocols = {"model": NamesModel, "run": NamesRun}
    for question, named in needs.items():
        one = object.__new__(question)
        for field in named:
            object.__setattr__(one, field, None)
        assert [isinstance(one, protocol) for protocol in protocols.values()] == [name in named for name in protocols]
