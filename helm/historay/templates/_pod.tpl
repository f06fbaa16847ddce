{{/*
One pod template for head and workers: (dict "root" $ "group" "head"|"workers").

KubeRay adds the start command, /dev/shm, the autoscaler (on the head) and an init container that waits for the head
(on workers); that one takes over this container's security context.
*/}}
{{- define "historay.podTemplate" -}}
{{- $root := .root -}}
{{- $isHead := eq .group "head" -}}
{{- $settings := index $root.Values .group -}}
metadata:
  labels:
    {{- toYaml (merge (include "historay.selectorLabels" $root | fromYaml) $root.Values.podLabels) | nindent 4 }}
  annotations:
    {{- /* A changed Secret of ours is a changed pod template: KubeRay then replaces the cluster without downtime. */}}
    checksum/config: {{ printf "%s%s" (toYaml $root.Values.apiKey) (toYaml $root.Values.s3) | sha256sum }}
    {{- with $root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "historay.serviceAccountName" . | quote }}
  # Only the head's autoscaler speaks to Kubernetes.
  automountServiceAccountToken: {{ and $isHead (eq (include "historay.autoscaled" $root) "true") }}
  terminationGracePeriodSeconds: {{ $root.Values.terminationGracePeriodSeconds | int64 }}
  {{- with $root.Values.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- if $settings.runtimeClassName }}
  runtimeClassName: {{ $settings.runtimeClassName | quote }}
  {{- end }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . | quote }}
    {{- end }}
  {{- end }}
  securityContext:
    {{- include "historay.podSecurity" $root | nindent 4 }}
  {{- with $settings.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $settings.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $settings.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and (not $isHead) $settings.topologySpread.enabled }}
  topologySpreadConstraints:
    - topologyKey: {{ $settings.topologySpread.topologyKey | quote }}
      maxSkew: {{ $settings.topologySpread.maxSkew | int64 }}
      whenUnsatisfiable: {{ $settings.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "historay.selectorLabels" $root | nindent 10 }}
          ray.io/node-type: worker
      # Each rollout has a cluster of its own, and is spread by itself.
      matchLabelKeys: [ray.io/cluster]
  {{- end }}
  containers:
    - name: ray-{{ ternary "head" "worker" $isHead }}
      image: {{ include "historay.image" $root | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      env:
        {{- include "historay.env" $root | nindent 8 }}
        {{- if $root.Values.haProxy }}
        {{- include "historay.haProxyEnv" $root | nindent 8 }}
        {{- end }}
      ports:
        {{- if $isHead }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: as-metrics, containerPort: 44217}
        - {name: dash-metrics, containerPort: 44227}
        {{- end }}
        - {name: metrics, containerPort: 8080}
        - {name: serve, containerPort: {{ $root.Values.serve.port | int64 }}}
      {{- /* KubeRay's own probes of a RayService's worker call wget, which a slim image has not. */}}
      livenessProbe:
        httpGet: {path: /api/healthz, port: 52365}
        initialDelaySeconds: 30
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 60 # 10 minutes, as long as a worker waits for a lost head to come back
      readinessProbe:
        {{- if $isHead }}
        httpGet: {path: /api/healthz, port: 52365}
        failureThreshold: 10
        {{- else }}
        httpGet: {path: /-/healthz, port: serve} # answers once a proxy runs here that knows a healthy replica
        failureThreshold: 1 # KubeRay's choice too: one miss takes the pod out of the Service
        {{- end }}
        initialDelaySeconds: 10
        periodSeconds: 5
        timeoutSeconds: 5
      lifecycle:
        preStop:
          exec:
            # Longer than it takes every node to see that the pod has left the Service.
            command: [/bin/sh, -c, sleep 15]
      securityContext:
        {{- include "historay.containerSecurity" $root | nindent 8 }}
      resources:
        {{- range $kind := list "requests" "limits" }}
        {{ $kind }}:
          cpu: {{ $settings.cpu | quote }}
          memory: {{ $settings.memory | quote }}
          {{- if $settings.gpus }}
          {{ $settings.gpuResource | quote }}: {{ $settings.gpus | int64 | quote }}
          {{- end }}
        {{- end }}
      volumeMounts:
        - {name: scratch, mountPath: /tmp}
        {{- if $root.Values.apiKey.keysSecret }}
        - {name: api-keys, mountPath: /etc/historay/keys, readOnly: true} # no subPath: Kubernetes would never update it
        {{- end }}
        {{- if $root.Values.sharedMemorySize }}
        - {name: shared-memory, mountPath: /dev/shm}
        {{- end }}
        {{- with $root.Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: scratch
      emptyDir: {sizeLimit: {{ $root.Values.scratchSize | quote }}}
    {{- with $root.Values.apiKey.keysSecret }}
    - name: api-keys
      secret: {secretName: {{ . | quote }}}
    {{- end }}
    {{- with $root.Values.sharedMemorySize }}
    - name: shared-memory
      emptyDir: {medium: Memory, sizeLimit: {{ . | quote }}}
    {{- end }}
    {{- with $root.Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* Ports that Ray would else draw by lot, fixed so that the NetworkPolicy can name them. */}}
{{- define "historay.rayStartParams" -}}
node-manager-port: "6380"
object-manager-port: "6381"
runtime-env-agent-port: "6382"
dashboard-agent-grpc-port: "6383"
dashboard-agent-listen-port: "52365"
metrics-export-port: "8080"
min-worker-port: "10002"
max-worker-port: "19999"
{{- end }}
