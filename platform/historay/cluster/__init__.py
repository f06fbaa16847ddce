"""Jobs on a cluster: submits a stage as a RayJob or to a plain Ray cluster, follows it, lists, cancels."""
