{{/* What all pods and containers have in common. */}}

{{/* Nobody is root, nothing is written but volumes, and Kubernetes' own API is not needed. */}}
{{- define "flotilla.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- if .Values.fixedUser }}
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  {{- end }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "flotilla.container" -}}
image: {{ include "flotilla.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [/usr/local/bin/flotilla]
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end -}}

{{/* Where pods go: the values of `coordinator` or `workers`, and what cards and lost nodes ask for. */}}
{{- define "flotilla.placement" -}}
{{- $at := .at -}}
{{- $values := .root.Values -}}
{{- with $at.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $at.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if .cards }}
{{- with $values.gpu.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end }}
{{- $affinity := $at.affinity }}
{{- if and .cards $values.gpu.products }}
{{- if get $affinity "nodeAffinity" }}
{{- fail "gpu.products and workers.affinity.nodeAffinity are both set, and a pod has one nodeAffinity\nhint: put the products there too, as a match of nvidia.com/gpu.product, and set gpu.products to []" }}
{{- end }}
{{- $is := dict "key" "nvidia.com/gpu.product" "operator" "In" "values" $values.gpu.products }}
{{- $terms := dict "nodeSelectorTerms" (list (dict "matchExpressions" (list $is))) }}
{{- $node := dict "nodeAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" $terms) }}
{{- $affinity = mergeOverwrite $node (deepCopy $affinity) }}
{{- end }}
{{- with $affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
tolerations:
  - { key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: {{ $values.workers.nodeLostSeconds }} }
  - { key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: {{ $values.workers.nodeLostSeconds }} }
  {{- if .cards }}
  - { key: {{ $values.gpu.resource }}, operator: Exists, effect: NoSchedule }
  {{- end }}
  {{- with $at.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Who serves the API: it lives if it answers at all, and is ready if a group serves, however much waits. */}}
{{- define "flotilla.apiProbes" -}}
startupProbe:
  httpGet: { path: /version, port: api, scheme: {{ include "flotilla.scheme" . }} }
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 120
livenessProbe:
  httpGet: { path: /version, port: api, scheme: {{ include "flotilla.scheme" . }} }
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /ready, port: api, scheme: {{ include "flotilla.scheme" . }} }
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 2
# Until every node has heard that nothing new comes here; then SIGTERM, and answers under way end.
lifecycle:
  preStop: { sleep: { seconds: 5 } }
{{- end -}}

{{/* The pause before the order, the time for answers, and some for the end. */}}
{{- define "flotilla.apiGrace" -}}{{ add .Values.serving.drainSeconds 20 }}{{- end -}}

{{- define "flotilla.apiArgs" -}}
{{- $model := .Values.model -}}
- --listen={{ .Values.listenHost }}:8000
{{- if eq $model.source "demo" }}
- --model=/opt/flotilla/demo/model
{{- else if eq $model.source "volume" }}
- --model={{ printf "/models/%s" $model.location | trimSuffix "/" }}
{{- else if eq $model.source "url" }}
- --model={{ $model.location }}
{{- else }}
- --model={{ $model.location }}
- --weights=synthetic:{{ $model.seed }}
{{- end }}
{{- with $model.servedName }}
- --served-name={{ . }}
{{- end }}
- --kv-tokens={{ int64 .Values.serving.kvTokens }}
- --sequences={{ int64 .Values.serving.sequences }}
- --queue={{ int64 .Values.serving.queue }}
- --stages={{ .Values.serving.stages }}
- --replicas={{ ternary 1 .Values.serving.replicas (eq (include "flotilla.isGroups" .) "yes") }}
- --drain-timeout={{ int64 .Values.serving.drainSeconds }}
{{- if .Values.apiKeys.existingSecret }}
- --api-keys=/etc/flotilla/keys/{{ .Values.apiKeys.key }}
{{- end }}
{{- if include "flotilla.apiSecret" . }}
- --tls-cert=/etc/flotilla/api-tls/tls.crt
- --tls-key=/etc/flotilla/api-tls/tls.key
{{- end }}
{{- end -}}

{{- define "flotilla.apiMounts" -}}
- { name: tmp, mountPath: /tmp }
{{- if eq .Values.model.source "volume" }}
- { name: model, mountPath: /models, readOnly: true }
{{- end }}
{{- if .Values.apiKeys.existingSecret }}
- { name: api-keys, mountPath: /etc/flotilla/keys, readOnly: true }
{{- end }}
{{- if include "flotilla.apiSecret" . }}
- { name: api-tls, mountPath: /etc/flotilla/api-tls, readOnly: true }
{{- end }}
{{- end -}}

{{- define "flotilla.apiVolumes" -}}
- { name: tmp, emptyDir: { sizeLimit: 256Mi } }
{{- if eq .Values.model.source "volume" }}
- { name: model, persistentVolumeClaim: { claimName: {{ include "flotilla.claim" . }}, readOnly: true } }
{{- end }}
{{- if .Values.apiKeys.existingSecret }}
- { name: api-keys, secret: { secretName: {{ .Values.apiKeys.existingSecret }}, defaultMode: 0440 } }
{{- end }}
{{- with include "flotilla.apiSecret" . }}
- { name: api-tls, secret: { secretName: {{ . }}, defaultMode: 0440 } }
{{- end }}
{{- end -}}

{{- define "flotilla.joinEnv" -}}
- name: FLOTILLA_JOIN_TOKEN
  valueFrom: { secretKeyRef: { name: {{ include "flotilla.joinSecret" . }}, key: {{ .Values.joinToken.key }} } }
{{- end -}}
