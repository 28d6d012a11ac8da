"""Mutants are found by text, and refused where that text does not say where."""

import unittest

from mutant_lib import plant
from mutant_lib.plant import Mutant, Stale


def mutant(name="M1", file="src/a.rs", old="a + b", new="a - b", **more):
    return Mutant(area="cpu", name=name, file=file, concept="", old=old, new=new, checks=[], full=[], **more)


def planted(mutants, text):
    hooked = {}
    for path, old, _ in plant.HOOKS:
        hooked[path] = hooked.get(path, "") + old + "\n"
    return plant.planted(mutants, lambda path: hooked.get(path, text))


class TestPlant(unittest.TestCase):
    def test_an_expression_a_statement_and_a_text_of_its_own(self):
        self.assertEqual(plant.switched(mutant(), "on(3)"), "(if on(3) { a - b } else { a + b })")
        self.assertEqual(plant.switched(mutant(old="x += 1;", new=""), "on(3)"), "if on(3) {  } else { x += 1; }")
        self.assertEqual(plant.switched(mutant(new="if MUTANT { a } else { a + b }"), "on(3)"), "if on(3) { a } else { a + b }")

    def test_the_switch_stands_where_the_text_stood(self):
        files = planted([mutant(), mutant("M2", old="c * d", new="c")], "let x = a + b; let y = c * d;")
        expected = "let x = (if crate::mutants::on(0) { a - b } else { a + b }); let y = (if crate::mutants::on(1) { c } else { c * d });"
        self.assertEqual(files["src/a.rs"], expected)
        self.assertIn('const NAMES: &[&str] = &["M1", "M2"];', files["src/mutants.rs"])

    def test_texts_of_kernels_are_left_to_the_run(self):
        files = planted([mutant(file="kernels/norm.cu", old="sum +=", new="sum -=")], "sum += x;")
        self.assertNotIn("kernels/norm.cu", files)
        self.assertIn('"/kernels/norm.cu")), r####"sum +="####, r####"sum -="####),', files["src/mutants.rs"])

    def test_a_text_that_is_not_there_once_is_stale(self):
        for text, count in [("nothing", 0), ("a + b + a + b", 2)]:
            with self.assertRaises(Stale) as caught:
                planted([mutant()], text)
            self.assertEqual(str(caught.exception), f"cpu.toml: M1: its old text stands {count} times in src/a.rs, not once")

    def test_texts_of_one_file_may_not_overlap_in_rust(self):
        both = [mutant(), mutant("M2", old="b + c", new="c")]
        with self.assertRaises(Stale) as caught:
            planted(both, "a + b + c")
        self.assertEqual(str(caught.exception), "src/a.rs: the old texts of M1 and M2 overlap")

    def test_every_mutant_of_the_repository_is_found(self):
        mutants = plant.load(plant.areas())
        self.assertGreaterEqual(len(mutants), 93)
        plant.planted(mutants, lambda path: (plant.ROOT / path).read_text())
