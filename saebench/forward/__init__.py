"""How the language model is computed: splices, ablations, losses, and the arithmetic under them."""
