"""`python -m hf_ppl_select score ...`, and `accelerate launch -m hf_ppl_select cpt ...`."""

from .command import main

main()
