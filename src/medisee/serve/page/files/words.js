/** How numbers, sizes and refusals read. */

/** The palette of `medisee.io.overlay`, so that page and downloaded picture agree. */
export const PALETTE = [
  "rgb(86 180 233)",
  "rgb(230 159 0)",
  "rgb(0 178 130)",
  "rgb(240 228 66)",
  "rgb(204 121 167)",
  "rgb(213 94 0)",
  "rgb(153 153 255)",
  "rgb(200 200 200)",
];

export const colourOf = (index) => PALETTE[index % PALETTE.length];

export const percent = (share) => `${Math.round(share * 100)}\u2009%`;

export const labelOf = (finding, index) => finding.label ?? `Finding ${index + 1}`;

/** Width by height of a finding's box, in mm where the image states a pixel's size. */
export function extent(finding, image) {
  const [x1, y1, x2, y2] = finding.box;
  const [row, column] = image.spacing_mm ?? [1, 1];
  const unit = image.spacing_mm ? "mm" : "px";
  return `${short((x2 - x1) * column)} \u00d7 ${short((y2 - y1) * row)}\u2009${unit}`;
}

/** Area of a finding in cm² or mm², or as a share of the image. */
export function surface(finding, image) {
  if (finding.area_mm2 === null) {
    const share = (100 * finding.area_px) / (image.width * image.height);
    return `${share < 0.1 ? "under 0.1" : short(share)}\u2009% of the image`;
  }
  if (finding.area_mm2 >= 100) return `${(finding.area_mm2 / 100).toFixed(1)}\u2009cm\u00b2`;
  return `${short(finding.area_mm2)}\u2009mm\u00b2`;
}

const short = (value) => (value >= 10 ? String(Math.round(value)) : value.toFixed(1));

/** What is known of an image, in one line. */
export function describeImage(image) {
  const parts = [image.modality ?? "Kind not stated", `${image.width} \u00d7 ${image.height}\u2009px`];
  if (image.spacing_mm) {
    const [row, column] = image.spacing_mm.map((mm) => Number(mm.toPrecision(3)));
    parts.push(row === column ? `${row}\u2009mm a pixel` : `${column} \u00d7 ${row}\u2009mm a pixel`);
  } else {
    parts.push("size in mm not stated");
  }
  return parts.join(" \u00b7 ");
}

/** The medical formats of results. */
export const FORMATS = { nifti: "NIfTI", seg: "DICOM-SEG", sr: "DICOM report (SR)" };

/** Title and advice for each reason of a refusal. */
export const REFUSALS = {
  not_in_view: [
    "Not in this image",
    "MediSee does not see it here. Another slice or view may show it. " +
      "That it was not found does not mean that it is not there.",
  ],
  wrong_modality: [
    "This kind of image does not show it",
    "What you ask for cannot be seen with this method. Ask about something else in the image, " +
      "or bring an image of another kind.",
  ],
  not_medical: [
    "Not a question about a medical image",
    "MediSee finds structures in medical images. Ask for something that can be seen in this one.",
  ],
  unclear: [
    "The question is not clear",
    "Describe one thing: what it does, where it lies, how it looks, or what it is called.",
  ],
};

/** Title, explanation and the label of the way on, for each kind of trouble with a question. */
export const TROUBLES = {
  lost: [
    "The connection was lost",
    "The answer did not come through whole. Check that the server is running and reachable.",
    "Ask again",
  ],
  busy: ["The server is busy", "Others are being answered first.", "Ask again"],
  expired: ["The session has ended", "The server no longer holds this image.", "Open it again and ask"],
  denied: ["A token is needed", "This server answers only to those who have its token.", "Ask again"],
  refused: ["This could not be answered", "", "Ask again"],
  stopped: ["Stopped", "", "Ask again"],
};
