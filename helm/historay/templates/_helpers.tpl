{{/* Name of everything; KubeRay takes a DNS-1035 label of at most 47 characters. */}}
{{- define "historay.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 47 | trimSuffix "-" -}}
{{- end }}

{{/* By which pods are found. Not app.kubernetes.io/name: KubeRay's head Service selects its own value of that label. */}}
{{- define "historay.selectorLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: {{ include "historay.fullname" . | quote }}
{{- end }}

{{- define "historay.labels" -}}
{{- $own := include "historay.selectorLabels" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/name" .Chart.Name -}}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .Release.Service -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") -}}
{{- toYaml (merge $own .Values.commonLabels) -}}
{{- end }}

{{/* "head" or "workers" gives the account of that group. */}}
{{- define "historay.serviceAccountName" -}}
{{- $own := include "historay.fullname" .root -}}
{{- $default := ternary $own "default" .root.Values.serviceAccount.create -}}
{{- $head := ternary (printf "%s-head" $own) "default" .root.Values.serviceAccount.create -}}
{{- if eq .group "head" -}}
{{- default $head .root.Values.serviceAccount.headName -}}
{{- else -}}
{{- default $default .root.Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{/* Whether Ray adds and removes workers: not in a queue, where Kueue admits a fixed number or nothing. */}}
{{- define "historay.autoscaled" -}}
{{- not .Values.kueue.queueName -}}
{{- end }}

{{/* Whether there is a pod of `helm test`: traffic in steps leaves it no Service to ask. */}}
{{- define "historay.tested" -}}
{{- if and .Values.tests.enabled (ne .Values.upgrade.strategy "NewClusterWithIncrementalUpgrade") }}yes{{ end -}}
{{- end }}

{{- define "historay.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Environment of every container that runs Historay: the API key, the store, a home that can be written. */}}
{{- define "historay.env" -}}
- name: HOME
  value: /tmp
- name: HISTORAY_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ default (printf "%s-api-key" (include "historay.fullname" .)) .Values.apiKey.existingSecret | quote }}
      key: {{ .Values.apiKey.key | quote }}
- name: AWS_REGION
  value: {{ .Values.s3.region | quote }}
{{- with .Values.s3.endpoint }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- if or .Values.s3.existingSecret .Values.s3.accessKeyId }}
{{- range $key := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ $key }}
  valueFrom:
    secretKeyRef:
      name: {{ default (printf "%s-s3" (include "historay.fullname" $)) $.Values.s3.existingSecret | quote }}
      key: {{ $key }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What restricted Pod Security asks of every container. */}}
{{- define "historay.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: {{ .Values.security.readOnlyRootFilesystem }}
capabilities:
  drop: [ALL]
{{- end }}

{{- define "historay.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.security.runAsUser | int64 }}
runAsGroup: {{ .Values.security.runAsGroup | int64 }}
fsGroup: {{ .Values.security.fsGroup | int64 }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* CPUs of a worker as KubeRay tells Ray of them: a part of one counts as one. */}}
{{- define "historay.workerCpus" -}}
{{- $units := dict "m" 0.001 "k" 1e3 "Ki" 1024 "M" 1e6 "Mi" 1048576 "G" 1e9 "Gi" 1073741824 "T" 1e12 "Ti" 1099511627776 -}}
{{- $unit := regexFind "[a-zA-Z]+$" .Values.workers.cpu -}}
{{- mulf (trimSuffix $unit .Values.workers.cpu | float64) (dig $unit 1 $units) | ceil | int64 -}}
{{- end }}

{{/* Replicas that wait for ever for CPUs or GPUs. */}}
{{- define "historay.checkRoom" -}}
{{- $workers := .Values.workers -}}
{{- $cpus := int (default 1 .Values.serve.cpus_per_replica) -}}
{{- $fit := div (include "historay.workerCpus" . | int) $cpus | int -}}
{{- if lt $fit 1 }}
{{- fail (printf "workers.cpu=%s holds no replica of serve.cpus_per_replica=%d; raise workers.cpu" $workers.cpu $cpus) }}
{{- end }}
{{- if $workers.gpus }}
{{- $fit = min $fit (divf $workers.gpus $workers.gpusPerReplica | floor) | int -}}
{{- if lt $fit 1 }}
{{- fail (printf "workers.gpus=%d holds no replica of workers.gpusPerReplica=%v; raise workers.gpus" (int $workers.gpus) $workers.gpusPerReplica) }}
{{- end }}
{{- end }}
{{- $most := int (ternary $workers.maxReplicas $workers.minReplicas (eq (include "historay.autoscaled" .) "true")) -}}
{{- $wanted := int (dig "min_replicas" 1 .Values.serve) -}}
{{- if gt $wanted (mul $fit $most | int) }}
{{- fail (printf "serve.min_replicas=%d is more than the %d that fit %d workers; raise their number or workers.cpu" $wanted (mul $fit $most) $most) }}
{{- end }}
{{- end }}

{{/* What the schema cannot say: two values that disagree. */}}
{{- define "historay.check" -}}
{{- $name := include "historay.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- fail (printf "the name %q is no DNS-1035 label, which KubeRay asks for; set fullnameOverride" $name) }}
{{- end }}
{{- if gt (int .Values.workers.minReplicas) (int .Values.workers.maxReplicas) }}
{{- fail (printf "workers.minReplicas=%d is more than workers.maxReplicas=%d" (int .Values.workers.minReplicas) (int .Values.workers.maxReplicas)) }}
{{- end }}
{{- if not (regexMatch "^(s3://|/)" .Values.serve.store) }}
{{- fail (printf "serve.store=%q: pods share no folder; use s3://bucket/prefix, or the absolute path of a volume in extraVolumes" .Values.serve.store) }}
{{- end }}
{{- if has .Values.serve.host (list "127.0.0.1" "localhost" "::1") }}
{{- fail (printf "serve.host=%s cannot be reached from another pod; use 0.0.0.0" .Values.serve.host) }}
{{- end }}
{{- if eq 0 (int (dig "min_replicas" 1 .Values.serve)) }}
{{- fail "serve.min_replicas=0: the Service leads to workers, and one without a replica has no proxy, so that no request could wake one; use 1" }}
{{- end }}
{{- if and .Values.apiKey.keysSecret (or .Values.serve.keys_file (not .Values.apiKey.existingSecret)) }}
{{- fail "apiKey.keysSecret: set apiKey.existingSecret too, to a Secret with one of those keys, and leave serve.keys_file out" }}
{{- end }}
{{- if and .Values.s3.existingSecret .Values.s3.accessKeyId }}
{{- fail "s3.existingSecret and s3.accessKeyId are both set; use one" }}
{{- end }}
{{- if and (eq .Values.upgrade.strategy "NewClusterWithIncrementalUpgrade") (or .Values.ingress.enabled .Values.httpRoute.enabled) }}
{{- fail (printf "upgrade.strategy=NewClusterWithIncrementalUpgrade: KubeRay then makes the Gateway %s-gateway and no Service that stays; leave ingress and httpRoute off" $name) }}
{{- end }}
{{- if and (eq .Values.upgrade.strategy "NewClusterWithIncrementalUpgrade") (gt (int .Values.upgrade.stepSizePercent) (int .Values.upgrade.maxSurgePercent)) }}
{{- fail (printf "upgrade.stepSizePercent=%d is more than upgrade.maxSurgePercent=%d" (int .Values.upgrade.stepSizePercent) (int .Values.upgrade.maxSurgePercent)) }}
{{- end }}
{{- include "historay.checkRoom" . }}
{{- end }}
