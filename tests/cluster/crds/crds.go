// Package crds keeps the modules whose custom resource definitions the tests load among what go.mod pins.
package crds

import (
	_ "github.com/prometheus-operator/prometheus-operator/pkg/versionutil"
	_ "sigs.k8s.io/gateway-api/apis/v1"
)
