if __name__ != "flowserve.graphs":  # a bare import would make a second copy of every class
    raise ImportError(f"import flowserve.graphs, not {__name__}: the folder graphs/ is the package flowserve.graphs")
