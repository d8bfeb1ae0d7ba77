"""A bundle behind HTTP: the server, the handler of an Inference Endpoint, and the page of a Space."""
