import inspect
import pickle

import pytest

from gmail_align import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, Exception)
]


@pytest.mark.parametrize("error", CLASSES)
def test_the_tree_in_the_docstring_names_every_error(error):
    assert error.__name__ in errors.__doc__
    assert issubclass(error, errors.GmailAlignError)
    assert error.__doc__


def test_users_mistakes_and_our_failures_are_apart():
    ours = {error for error in CLASSES if not issubclass(error, errors.UserError)}
    assert ours == {errors.GmailAlignError}


@pytest.mark.parametrize("error", CLASSES)
def test_errors_travel_between_processes(error):
    copy = pickle.loads(pickle.dumps(error("one sentence")))
    assert type(copy) is error
    assert str(copy) == "one sentence"
