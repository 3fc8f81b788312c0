"""What pyproject.toml cannot say of the package: a wheel has the folder recipes/ as hf_ppl_select/recipes/."""

from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # which uses the checkout's
            folder = Path(self.build_lib, "hf_ppl_select", "recipes")
            rmtree(folder, ignore_errors=True)  # of an earlier build
            copytree(Path(__file__).with_name("recipes"), folder, ignore=ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithRecipes})
