"""Two tiny language models of each family, one with an edit made by hand, and a question for them."""

import pytest
from facts_explored import ANSWER, PROMPT, explored
from small_models import small_gpt2, small_llama

from figures.explorer.facts_model import Question, question
from figures.explorer.facts_neurons import Located, most_changed
from figures.explorer.facts_pair import Pair, open_pair

FAMILIES = {"gpt2": small_gpt2, "llama": small_llama}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YESTERDAY_CACHE", str(folder / "cache"))
        return open_pair(explored(folder, FAMILIES[request.param]))


@pytest.fixture
def asked(pair: Pair) -> Question:
    return question(pair, PROMPT, ANSWER)


@pytest.fixture(scope="module")
def located(pair: Pair) -> Located:
    return Located(pair, tuple(most_changed(pair.original, pair.edit)))
