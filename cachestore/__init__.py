if __name__ != "flowserve.cachestore":  # a bare import would make a second copy of every class
    raise ImportError(
        f"import flowserve.cachestore, not {__name__}: the folder cachestore/ is the package flowserve.cachestore"
    )
