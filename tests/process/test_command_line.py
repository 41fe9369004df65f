"""Errors of users: what is a sentence, and what stays a traceback."""

import pytest

from handpose_jax.process import command_line


def test_a_wrong_command_line_is_told_in_one_line(capsys):
    parser = command_line.Parser(prog='script.py')
    parser.add_argument('--count', type=int)
    # Commands below a parser are of its class.
    parser.add_subparsers().add_parser('part').add_argument('--size', type=int)
    for words, prog in (
        (['--count', 'few'], 'script.py'),
        (['part', '--size', 'x'], 'script.py part'),
    ):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(words)
        assert caught.value.code == 2
        expected = f'error: argument {words[-2]}: invalid int value: {words[-1]!r}; '
        assert capsys.readouterr().err == f'{expected}{prog} --help tells all options\n'


@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (ValueError('count: expected 1, got 0'), 'error: count: expected 1, got 0'),
        (NotADirectoryError(20, 'Not a directory', 'F/x'), r'error: F/x: .*\(Not a directory\)'),
    ],
)
def test_errors_of_the_user_are_sentences(error, message):
    with pytest.raises(SystemExit, match=message), command_line.told():
        raise error


@pytest.mark.parametrize('error', [OSError(5, 'Input/output error'), KeyError('name')])
def test_others_are_not_hidden(error):
    with pytest.raises(type(error)), command_line.told():
        raise error
