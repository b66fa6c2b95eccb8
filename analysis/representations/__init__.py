"""What a model's hidden layers hold: captured activations, probes, similarity and 2-D projections."""
