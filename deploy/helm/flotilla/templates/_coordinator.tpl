{{/* The pod of a coordinator: of the Deployment, and the leader of each group of a LeaderWorkerSet. */}}

{{- define "flotilla.coordinatorTemplate" -}}
metadata:
  labels:
    {{- include "flotilla.selector" . | nindent 4 }}
    app.kubernetes.io/component: coordinator
  {{- with .Values.coordinator.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "flotilla.pod" . | nindent 2 }}
  {{- include "flotilla.placement" (dict "root" . "at" .Values.coordinator "cards" false) | trim | nindent 2 }}
  terminationGracePeriodSeconds: {{ include "flotilla.apiGrace" . }}
  containers:
    - name: coordinator
      {{- include "flotilla.container" (dict "root" . "cards" false) | nindent 6 }}
      args:
        - coordinator
        {{- include "flotilla.apiArgs" . | trim | nindent 8 }}
        - --worker-listen={{ .Values.listenHost }}:7070
        - --workers={{ include "flotilla.ranks" . }}
        {{- if .Values.certManager.enabled }}
        - --worker-tls-cert=/etc/flotilla/fleet-tls/tls.crt
        - --worker-tls-key=/etc/flotilla/fleet-tls/tls.key
        - --worker-tls-ca=/etc/flotilla/fleet-tls/ca.crt
        {{- end }}
        {{- with .Values.serving.args }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      env:
        {{- include "flotilla.joinEnv" . | trim | nindent 8 }}
        - { name: FLOTILLA_LOG, value: {{ .Values.log | quote }} }
        {{- with .Values.coordinator.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - { name: api, containerPort: 8000 }
        - { name: fleet, containerPort: 7070 }
      {{- include "flotilla.apiProbes" . | nindent 6 }}
      resources: {{- toYaml .Values.coordinator.resources | nindent 8 }}
      volumeMounts:
        {{- include "flotilla.apiMounts" . | trim | nindent 8 }}
        {{- if .Values.certManager.enabled }}
        - { name: fleet-tls, mountPath: /etc/flotilla/fleet-tls, readOnly: true }
        {{- end }}
  volumes:
    {{- include "flotilla.apiVolumes" . | trim | nindent 4 }}
    {{- if .Values.certManager.enabled }}
    - { name: fleet-tls, secret: { secretName: {{ include "flotilla.fullname" . }}-coordinator-tls, defaultMode: 0440 } }
    {{- end }}
{{- end -}}
