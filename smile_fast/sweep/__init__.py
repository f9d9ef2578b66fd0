"""Methods x shares of missing annotations x folds, each an ordinary run, and the figures that are made of them."""
