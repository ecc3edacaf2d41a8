"""Python's Penn Treebank words against what Stanford's program answered (3.4.1, -preserveLines -lowerCase)."""

import shutil

import pytest

from pipeline.errors import InputError
from pipeline.evaluation.ptb import java_jar, tokenise_java, tokenise_python

# text -> the program's tokens without coco-caption's punctuation
GOLDEN = {
    "A man's dog isn't here; it's \"very\" big (really) and can't run.": (
        "a man 's dog is n't here it 's very big -lrb- really -rrb- and ca n't run"
    ),
    "He said: 'hello' -- and left... The colour is grey, at 3:30 p.m. for $5.00 & 20%.": (
        "he said hello and left the colour is grey at 3:30 p.m. for $ 5.00 & 20 %"
    ),
    "A t-shirt and/or two-wheeled bike, cannot gonna wanna gotta lemme": (
        "a t-shirt and/or two-wheeled bike can not gon na wan na got ta lem me"
    ),
    'The St. Louis sign reads "STOP!" at the U.S. border': "the st. louis sign reads stop at the u.s. border",
    "dogs' tails and the man who'd, we've, they'll, you're, I'm": (
        "dogs tails and the man who 'd we 've they 'll you 're i 'm"
    ),
    "a 1/2 eaten pizza, 1,000 people #1 @ home c++ AT&T": "a 1/2 eaten pizza 1,000 people # 1 @ home c++ at&t",
    "two people (one w/ a hat) sit . They eat ,drink and laugh.They go": (
        "two people -lrb- one w / a hat -rrb- sit they eat drink and laugh.they go"
    ),
    "o'clock rock 'n' roll ma'am y'all 'tis 'twas": "o'clock rock 'n' roll ma'am y' all 't is 't was",
    "black & white [photo] {x} <b> * ^ ~ a_b www.foo.com a@b.com": (
        "black & white -lsb- photo -rsb- -lcb- x -rcb- <b> * ^ ~ a_b www.foo.com a@b.com"
    ),
    "A café naïve façade “quoted” ‘single’ — dash … £5 €6 ½": "a café naïve façade quoted single dash # 5 $ 6 1/2",
    "mid-flight 80's '80s 1980s 2nd 10-year-old x-ray": "mid-flight 80 's '80s 1980s 2nd 10-year-old x-ray",
    "wait... wait . . . what?! what??? no!!! dog..cat": "wait wait what ?! what ??? no !!! dog cat",
    "dog-walker dog--cat dog - cat -dog dog- 3-4 3 - 4": "dog-walker dog cat dog cat dog dog 3-4 3 4",
    "eats,drinks red,white and blue 12:30pm 5pm .5 12ft. 5lbs": (
        "eats drinks red white and blue 12:30 pm 5pm .5 12ft 5lbs"
    ),
    "wo n't shan't ain't dont its": "wo n't sha n't ai n't dont its",
    'the letter " P. "': "the letter p.",
    " . ": "",
    "": "",
}


def test_python_gives_the_programs_tokens() -> None:
    assert dict(zip(GOLDEN, tokenise_python(list(GOLDEN)), strict=True)) == GOLDEN


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java runtime")
def test_the_program_still_answers_so() -> None:
    assert dict(zip(GOLDEN, tokenise_java(list(GOLDEN)), strict=True)) == GOLDEN


def test_without_java_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert java_jar() is None
    with pytest.raises(InputError, match="needs a Java runtime"):
        tokenise_java(["a"])
