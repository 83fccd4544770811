{{/* Names, labels and what is said in more than one place. */}}

{{- define "flotilla.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Room is left for what is put behind it, and for the number of a pod. */}}
{{- define "flotilla.fullname" -}}
{{- $name := include "flotilla.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "flotilla.selector" -}}
app.kubernetes.io/name: {{ include "flotilla.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "flotilla.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "flotilla.selector" . }}
{{- end -}}

{{/* Pods with cards have the image with the card's libraries. */}}
{{- define "flotilla.image" -}}
{{- $image := .root.Values.image -}}
{{ $image.repository }}:{{ default .root.Chart.AppVersion $image.tag }}{{ if .cards }}-cuda{{ end }}
{{- end -}}

{{- define "flotilla.isNode" -}}{{ if eq .Values.topology "node" }}yes{{ end }}{{- end -}}
{{- define "flotilla.isSet" -}}{{ if and (eq .Values.topology "fleet") (eq .Values.workers.kind "StatefulSet") }}yes{{ end }}{{- end -}}
{{- define "flotilla.isGroups" -}}{{ if and (eq .Values.topology "fleet") (eq .Values.workers.kind "LeaderWorkerSet") }}yes{{ end }}{{- end -}}

{{/* Workers of one copy. */}}
{{- define "flotilla.ranks" -}}
{{- ternary .Values.workers.perPod (mul .Values.workers.count .Values.workers.perPod) (eq .Values.topology "node") -}}
{{- end -}}

{{/* Copies that are there from the start. */}}
{{- define "flotilla.replicas" -}}
{{- if eq (toString .Values.serving.replicas) "auto" -}}
{{ ternary .Values.autoscaling.replicasMin 1 .Values.autoscaling.enabled }}
{{- else -}}
{{ .Values.serving.replicas }}
{{- end -}}
{{- end -}}

{{- define "flotilla.joinSecret" -}}
{{ default (printf "%s-join" (include "flotilla.fullname" .)) .Values.joinToken.existingSecret }}
{{- end -}}

{{/* The Secret with the API's certificate; empty: plain HTTP. */}}
{{- define "flotilla.apiSecret" -}}
{{- if .Values.certManager.api.enabled -}}
{{ include "flotilla.fullname" . }}-api-tls
{{- else -}}
{{ .Values.apiTls.existingSecret }}
{{- end -}}
{{- end -}}

{{/* Where clients ask. With groups, the plain name is that of the LeaderWorkerSet's own Service. */}}
{{- define "flotilla.apiService" -}}
{{ include "flotilla.fullname" . }}{{ if include "flotilla.isGroups" . }}-api{{ end }}
{{- end -}}

{{- define "flotilla.scheme" -}}{{ ternary "HTTPS" "HTTP" (ne (include "flotilla.apiSecret" .) "") }}{{- end -}}

{{/* The claim that the model lies on. */}}
{{- define "flotilla.claim" -}}
{{ default (printf "%s-model" (include "flotilla.fullname" .)) .Values.model.volume.existingClaim }}
{{- end -}}

{{- define "flotilla.fleetName" -}}{{ include "flotilla.fullname" . }}-fleet{{- end -}}
