{{/*
Ports between the pods of one endpoint (Ray 2.60: ray/scripts/scripts.py, serve/_private/constants.py). Those that Ray
would draw by lot are fixed by historay.rayStartParams. Compared once with what a head of Ray 2.60.0 with these flags and
HAProxy listened on: besides these, 8000, 8080, 44217 and 44227, which the policies name; 10001 (Ray client), 8404 and 9101
(HAProxy's statistics and metrics, on all addresses and without a password; the requests' numbers are among Ray's at 8080)
and one port a replica drawn by lot (its gRPC, off by default), which they leave closed.
*/}}
{{- define "historay.rayPorts" -}}
- {protocol: TCP, port: 6379} # GCS: the head's record of nodes, actors and jobs
- {protocol: TCP, port: 6380} # raylet (node manager)
- {protocol: TCP, port: 6381} # object manager: objects between nodes
- {protocol: TCP, port: 6382} # runtime environment agent
- {protocol: TCP, port: 6383} # dashboard agent, gRPC
- {protocol: TCP, port: 8265} # dashboard and Serve's REST API, on the head
- {protocol: TCP, port: 52365} # dashboard agent, HTTP
- {protocol: TCP, port: 10002, endPort: 19999} # worker processes: every call between actors
{{- if .Values.haProxy }}
- {protocol: TCP, port: 8500} # the head's Python proxy, to which HAProxy turns while no replica is up
- {protocol: TCP, port: 30000, endPort: 31000} # replicas listen themselves, for the HAProxy of every node
{{- end }}
{{- end }}

{{/* Serving through HAProxy, as historay serve does (serving/proxy.py); the ports are those that the policies name. */}}
{{- define "historay.haProxyEnv" -}}
- {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
- {name: RAY_SERVE_THROUGHPUT_OPTIMIZED, value: "1"}
# What a lost replica had taken another answers, if it fits the buffer: a prediction asked twice does no harm.
- {name: RAY_SERVE_HAPROXY_RETRY_ON, value: conn-failure empty-response}
- {name: RAY_SERVE_HAPROXY_TUNE_BUFSIZE, value: "131072"}
# Ray would wait an hour for a client that sends nothing more.
- {name: RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S, value: "60"}
- {name: RAY_SERVE_HAPROXY_METRICS_PORT, value: "9101"}
- {name: RAY_SERVE_HAPROXY_STATS_PORT, value: "8404"}
- {name: RAY_SERVE_FALLBACK_PROXY_HTTP_PORT, value: "8500"}
- {name: RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT, value: "30000"}
- {name: RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT, value: "31000"}
{{- end }}

{{- define "historay.rayPods" -}}
podSelector:
  matchLabels:
    {{- include "historay.selectorLabels" . | nindent 4 }}
    ray.io/is-ray-node: "yes"
{{- end }}

{{- define "historay.dns" -}}
- to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ .Values.networkPolicy.dnsNamespace | quote }}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end }}

{{/* Where every pod that reads the store may go: DNS, the store. */}}
{{- define "historay.egress" -}}
{{ include "historay.dns" . }}
- to:
    {{- with .Values.networkPolicy.s3 }}
    {{- if or .namespaceLabels .podLabels }}
    - podSelector: {{ if .podLabels }}{matchLabels: {{ .podLabels | toJson }}}{{ else }}{}{{ end }}
      {{- with .namespaceLabels }}
      namespaceSelector:
        matchLabels:
          {{- toYaml . | nindent 10 }}
      {{- end }}
    {{- else }}
    - ipBlock: {cidr: {{ .cidr | quote }}}
    {{- end }}
    {{- end }}
  ports:
    {{- range .Values.networkPolicy.s3.ports }}
    - {protocol: TCP, port: {{ . | int64 }}}
    {{- end }}
{{- range .Values.networkPolicy.extraEgress }}
- to:
    - ipBlock: {cidr: {{ .cidr | quote }}}
  ports:
    {{- range .ports }}
    - {protocol: TCP, port: {{ . | int64 }}}
    {{- end }}
{{- end }}
{{- end }}
