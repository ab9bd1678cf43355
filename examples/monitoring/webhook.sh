#!/bin/sh
# Posts an alert of `troop admin` to $WEBHOOK_URL, which is in its environment:
#
#   WEBHOOK_URL=https://… troop admin --alert ./webhook.sh
#
# With WEBHOOK_FORM=slack the text alone, as Slack, Mattermost and Discord (…/slack) take it; otherwise all of it.
set -eu
if [ "${WEBHOOK_FORM:-}" = slack ]; then
  # troop has escaped what is no plain text already.
  body=$(printf '{"text": "%s"}' "$(printf %s "$TROOP_ALERT_TEXT" | sed 's/["\\]/\\&/g')")
else
  body=$(cat)
fi
printf %s "$body" |
  curl --fail --silent --show-error --max-time 20 --header 'Content-Type: application/json' --data-binary @- -- "$WEBHOOK_URL"
