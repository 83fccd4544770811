{{/* The pod of workers: of the StatefulSet, and of a LeaderWorkerSet's groups. */}}

{{- define "flotilla.workerTemplate" -}}
metadata:
  labels:
    {{- include "flotilla.selector" . | nindent 4 }}
    app.kubernetes.io/component: worker
  {{- with .Values.workers.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "flotilla.pod" . | nindent 2 }}
  {{- include "flotilla.placement" (dict "root" . "at" .Values.workers "cards" .Values.gpu.enabled) | trim | nindent 2 }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: {{ .Values.workers.spread.topologyKey }}
      whenUnsatisfiable: {{ .Values.workers.spread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "flotilla.selector" . | nindent 10 }}
          app.kubernetes.io/component: worker
  {{- if gt (int .Values.workers.perPod) 1 }}
  # Workers of one pod see each other, so that they sum through memory.
  shareProcessNamespace: true
  {{- end }}
  # A worker that is told to stop says so and leaves its group at once.
  terminationGracePeriodSeconds: 30
  containers:
    {{- range $index := until (int .Values.workers.perPod) }}
    {{- include "flotilla.worker" (dict "root" $ "index" $index) | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "flotilla.workerVolumes" . | trim | nindent 4 }}
    {{- if .Values.certManager.enabled }}
    - { name: fleet-tls, secret: { secretName: {{ include "flotilla.fullname" . }}-worker-tls, defaultMode: 0440 } }
    {{- end }}
{{- end -}}

{{/* One worker; of several in a pod each has ports, and a name, of its own. */}}
{{- define "flotilla.worker" -}}
{{- $values := .root.Values -}}
- name: worker-{{ .index }}
  {{- include "flotilla.container" (dict "root" .root "cards" $values.gpu.enabled) | nindent 2 }}
  args:
    - worker
    - --coordinator={{ ternary "https" "http" $values.certManager.enabled }}://{{ include "flotilla.coordinatorHost" .root }}:7070
    - --name=$(POD_NAME)-{{ .index }}
    - --collective-listen={{ $values.listenHost }}:{{ add 7071 .index }}
    - --weights-listen={{ $values.listenHost }}:{{ add 9071 .index }}
    - --advertise-host=$(POD_IP)
    - --health-listen={{ $values.listenHost }}:{{ add 8071 .index }}
    - --join-timeout=86400
    - --rejoin-timeout=86400
    {{- if $values.gpu.enabled }}
    - --device=cuda:0
    {{- end }}
    {{- with int $values.workers.threads }}
    - --threads={{ . }}
    {{- end }}
    {{- if ne $values.workers.cache.type "none" }}
    - --weight-cache=/var/cache/flotilla/weights
    - --weight-cache-bytes={{ $values.workers.cache.bytes }}
    {{- end }}
    {{- if $values.certManager.enabled }}
    - --tls-cert=/etc/flotilla/fleet-tls/tls.crt
    - --tls-key=/etc/flotilla/fleet-tls/tls.key
    - --tls-ca=/etc/flotilla/fleet-tls/ca.crt
    - --tls-name={{ include "flotilla.fleetName" .root }}
    {{- end }}
    {{- with $values.workers.args }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  env:
    - { name: POD_NAME, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
    - { name: POD_IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
    {{- include "flotilla.joinEnv" .root | trim | nindent 4 }}
    - { name: FLOTILLA_LOG, value: {{ $values.log | quote }} }
    - { name: FLOTILLA_CACHE, value: /var/cache/flotilla }
    {{- with $values.workers.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - { name: collective-{{ .index }}, containerPort: {{ add 7071 .index }} }
    - { name: weights-{{ .index }}, containerPort: {{ add 9071 .index }} }
    - { name: health-{{ .index }}, containerPort: {{ add 8071 .index }} }
  # It lives if it answers, whatever its peers do; it is ready if it has a place in the fleet. Never ask the collective's
  # port: what dials it takes a place in its queue.
  startupProbe:
    httpGet: { path: /health, port: health-{{ .index }} }
    periodSeconds: 5
    timeoutSeconds: 5
    failureThreshold: 120
  livenessProbe:
    httpGet: { path: /health, port: health-{{ .index }} }
    periodSeconds: 10
    timeoutSeconds: 10
    failureThreshold: 6
  readinessProbe:
    httpGet: { path: /ready, port: health-{{ .index }} }
    periodSeconds: 2
    timeoutSeconds: 5
    failureThreshold: 2
  resources: {{- include "flotilla.workerResources" (dict "root" .root "cards" 1) | nindent 4 }}
  volumeMounts:
    {{- include "flotilla.workerMounts" .root | nindent 4 }}
    {{- if $values.certManager.enabled }}
    - { name: fleet-tls, mountPath: /etc/flotilla/fleet-tls, readOnly: true }
    {{- end }}
{{- end -}}

{{- define "flotilla.coordinatorHost" -}}
{{- if include "flotilla.isGroups" . -}}$(LWS_LEADER_ADDRESS){{- else -}}{{ include "flotilla.fleetName" . }}{{- end -}}
{{- end -}}

{{/* Cards are whole: what is asked for is the limit. */}}
{{- define "flotilla.workerResources" -}}
{{- $resources := deepCopy .root.Values.workers.resources -}}
{{- if .root.Values.gpu.enabled -}}
{{- $cards := dict .root.Values.gpu.resource .cards -}}
{{- $resources = mergeOverwrite $resources (dict "requests" $cards "limits" (deepCopy $cards)) -}}
{{- end -}}
{{ toYaml $resources }}
{{- end -}}

{{- define "flotilla.workerMounts" -}}
- { name: tmp, mountPath: /tmp }
- { name: shm, mountPath: /dev/shm }
- { name: cache, mountPath: /var/cache/flotilla }
{{- end -}}

{{- define "flotilla.workerVolumes" -}}
{{- $cache := .Values.workers.cache -}}
- { name: tmp, emptyDir: { sizeLimit: 256Mi } }
- { name: shm, emptyDir: { medium: Memory, sizeLimit: {{ .Values.workers.sharedMemory }} } }
{{- if eq $cache.type "none" }}
- { name: cache, emptyDir: { sizeLimit: 1Gi } }
{{- else if eq $cache.type "node" }}
- { name: cache, hostPath: { path: {{ $cache.hostPath }}, type: Directory } }
{{- end }}
{{- end -}}

{{/* What a StatefulSet or a LeaderWorkerSet makes for each pod. */}}
{{- define "flotilla.claims" -}}
- metadata: { name: cache }
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .Values.workers.cache.storageClassName }}
    storageClassName: {{ . }}
    {{- end }}
    resources: { requests: { storage: {{ .Values.workers.cache.size }} } }
{{- end -}}
